"""A full disk while answering or merging: one line, what is finished is kept, and the same command goes on from it."""

import json

import pytest
from ranks import BASE, LORA, run, train
from safetensors.torch import load_file

PREDICT = ["--max_samples", "64", "--max_new_tokens", "6", "--per_device_eval_batch_size", "4"]


def refused(printed: str) -> str:
    """The one line of an error."""
    assert "Traceback" not in printed
    [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "free some space" in line
    return line


def names(folder) -> set[str]:
    return {path.name for path in folder.rglob("*")} if folder.exists() else set()


def test_predictions_go_on_from_the_answers_that_are_kept(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    code, printed = run("predict", [*PREDICT, "--output_dir", str(whole)], tmp_path)
    assert code == 0, printed
    kept = [0]
    size = (whole / "generated_predictions.txt").stat().st_size
    for limit in (300, size * 2 // 3):
        code, printed = run("predict", [*PREDICT, "--output_dir", str(out)], tmp_path, file_bytes=limit)
        assert code == 2, printed
        assert "(File too large)" in refused(printed)
        partial = out / "generated_predictions.txt"
        lines = partial.read_text(encoding="utf-8").splitlines(keepends=True) if partial.exists() else []
        assert all(line.endswith("\n") and json.loads(line) for line in lines)
        assert names(out) <= {"generated_predictions.txt", "predict_config.json"}
        kept.append(len(lines))
    assert kept == [0, 0, 32]
    code, printed = run("predict", [*PREDICT, "--output_dir", str(out)], tmp_path)
    assert code == 0, printed
    assert names(out) == names(whole) == {"generated_predictions.txt", "predict_config.json", "predict_results.json"}
    for name in names(whole) - {"predict_config.json"}:
        assert (out / name).read_text(encoding="utf-8") == (whole / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def adapter(uneven, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    flags = ["--train_path", str(uneven), *LORA, "--max_steps", "1", "--output_dir", str(folder / "out")]
    codes, printed = train(flags, 1, folder)
    assert codes == [0], printed
    return folder / "out"


@pytest.mark.parametrize("limit", [400, 3000, 1_000_000])
def test_a_merge_leaves_nothing_half_written_and_can_be_tried_again(limit, adapter, tmp_path):
    flags = ["--ori_model_dir", str(BASE), "--model_dir", str(adapter), "--output_dir", str(tmp_path / "merged")]
    code, printed = run("merge", flags, tmp_path, file_bytes=limit)
    assert code == 2, printed
    assert f"{tmp_path / 'merged'}: could not be saved (" in refused(printed)
    assert names(tmp_path) == {"merge.log"}
    (tmp_path / "merge.log").unlink()
    code, printed = run("merge", flags, tmp_path)
    assert code == 0, printed
    assert len(load_file(tmp_path / "merged" / "model.safetensors")) > 10
