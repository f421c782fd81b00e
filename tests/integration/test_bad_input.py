"""Bad input: one line a problem, exit code 2, no traceback, nothing written, before any weight is loaded."""

import json
import shutil

import pytest
from ranks import BASE

from glmft.cli import main

GOOD = json.dumps({"instruction": "请复述：", "input": "云川", "output": "云川"}, ensure_ascii=False) + "\n"


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run train.py's command in this process; weights must not be loaded."""
    from glmft.models import loading

    def refuse(*args, **kwargs):
        raise AssertionError("the model was loaded before the check")

    monkeypatch.setattr(loading, "load_model", refuse)
    data = tmp_path / "data.json"
    data.write_text(GOOD * 4, encoding="utf-8")

    def command(*flags: str) -> tuple[int, list[str]]:
        given = {"--train_path": str(data), "--output_dir": str(tmp_path / "out")}
        given.update(zip(flags[::2], flags[1::2], strict=True))
        code = main([part for pair in given.items() for part in pair], command="train", program="train.py")
        return code, capsys.readouterr().err.splitlines()

    command.folder = tmp_path
    return command


CASES = {
    "missing data": (["--train_path", "nowhere.json"], "nowhere.json: no such file"),
    "missing model": (["--model_name_or_path", "nowhere"], "nowhere: no such folder"),
    "unknown tuner": (["--train_type", "lorra"], "did you mean lora?"),
    "lengths": (["--max_src_len", "600", "--max_len", "512"], "--max_src_len 600"),
    "lora name": (["--lora_module_name", "q_proj"], "dense, dense_4h_to_h, dense_h_to_4h, query_key_value"),
    "freeze name": (["--train_type", "freeze", "--freeze_module_name", "layers.27."], "layers.0…3."),
    "unknown flag": (["--lora_rnk", "8"], "did you mean --lora_rank?"),
    "wrong type": (["--seed", "one"], "--seed"),
    "DeepSpeed file": (["--ds_file", "ds_zero9.json"], "ds_zero2_no_offload.json"),
    "family": (["--mode", "glm3"], "holds a glm2 model"),
    "fp16 on a CPU": (["--dtype", "fp16", "--device", "cpu"], "no fp16 on a CPU"),
    "resume": (["--resume", "sometime"], "neither yes nor the step"),
    "output below a file": (["--output_dir", f"{BASE}/config.json/out"], "cannot be written"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_code_2(case, run):
    flags, part = CASES[case]
    code, lines = run(*flags)
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert part in lines[0]
    assert not (run.folder / "out").exists()


def test_several_problems_come_together(run):
    code, lines = run("--train_type", "lorra", "--max_src_len", "2000", "--learning_rate", "-1", "--train_path", "no")
    assert code == 2
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("second_line", "part"),
    [
        ('{"instruction": "a"', "broken JSON"),
        ('{"instruction": "a", "input": "b"}', "'output' is missing"),
        ('{"instruction": "a", "output": null}', "'output' is null"),
        ('{"instruction": "", "input": "", "output": "c"}', "both empty"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(second_line, part, run):
    path = run.folder / "bad.json"
    path.write_text(GOOD + second_line + "\n" + GOOD, encoding="utf-8")
    code, lines = run("--train_path", str(path))
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {path}:2: ")
    assert part in lines[0]


def test_a_folder_that_holds_a_run_is_refused_unless_told_otherwise(run):
    (run.folder / "out").mkdir()
    (run.folder / "out" / "train_config.json").write_text("{}")
    code, lines = run()
    assert code == 2
    assert "--resume yes" in lines[0]
    assert "--overwrite_output_dir" in lines[0]


def test_a_folder_with_foreign_files_is_never_deleted(run):
    (run.folder / "out").mkdir()
    (run.folder / "out" / "thesis.tex").write_text("mine")
    code, lines = run("--overwrite_output_dir", "True")
    assert code == 2
    assert "no run of glmft" in lines[0]
    assert (run.folder / "out" / "thesis.tex").read_text() == "mine"


def test_a_missing_shard_is_named(run):
    base = run.folder / "base"
    shutil.copytree(BASE, base)
    (base / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    code, lines = run("--model_name_or_path", str(base))
    assert code == 2
    assert "model-00001-of-00002.safetensors" in lines[0]
