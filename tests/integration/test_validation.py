"""Validation while training: the loss of rows that are not trained on, whatever the ranks and micro-batches."""

import pytest
import torch
from encoding import encoded
from ranks import BASE, metrics, train
from safetensors.torch import load_file

import glmft
from glmft.data.collate import collate
from glmft.data.encode import Lengths
from glmft.data.formats import read_records


def lines(folder, key: str) -> list[dict]:
    return [line for line in metrics(folder) if key in line]


def flags(uneven, *more: str) -> list[str]:
    common = ["--train_path", str(uneven), "--max_len", "512", "--max_src_len", "256", "--lora_dropout", "0.1"]
    return [*common, "--per_device_train_batch_size", "2", "--max_steps", "4", *more]


@pytest.mark.parametrize(("ranks", "size", "stage"), [(1, 16, "0"), (1, 3, "2_no_offload"), (2, 2, "3_no_offload")])
def test_the_last_validation_is_the_loss_of_the_saved_model(ranks, size, stage, uneven, tmp_path):
    more = ["--val_path", str(uneven), "--eval_steps", "3", "--per_device_eval_batch_size", str(size)]
    out = tmp_path / "out"
    codes, printed = train(
        [*flags(uneven, *more), "--ds_file", f"ds_zero{stage}.json", "--output_dir", str(out)], ranks, tmp_path
    )
    assert codes == [0] * ranks, printed
    found = lines(out, "eval_loss")
    assert [line["step"] for line in found] == [3, 4]
    assert "step 4/4  validation: eval_loss" in printed
    model, tokenizer = glmft.load(out)
    examples, _ = encoded(read_records(uneven)[0], tokenizer, Lengths(512, 256))
    with torch.no_grad():
        expected = model(**collate(examples, tokenizer)).loss.item()
    assert found[-1]["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_validation_does_not_change_training(uneven, tmp_path):
    weights = []
    for name, more in (("with", ["--val_path", str(uneven), "--eval_steps", "1"]), ("without", [])):
        out = tmp_path / name
        codes, printed = train([*flags(uneven, *more), "--output_dir", str(out)], 1, tmp_path)
        assert codes == [0], printed
        weights.append(load_file(out / "adapter_model.safetensors"))
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_a_share_is_held_out(uneven, tmp_path):
    more = ["--val_ratio", "0.3", "--model_name_or_path", str(BASE)]
    codes, printed = train([*flags(uneven, *more), "--output_dir", str(tmp_path / "out")], 1, tmp_path)
    assert codes == [0], printed
    assert "3 of 10 rows held out for validation" in printed
    assert len(lines(tmp_path / "out", "eval_loss")) == 1


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--val_path", "nowhere.json"], "--val_path nowhere.json: no such file"),
        (["--val_ratio", "1.5"], "--val_ratio 1.5: must be at least 0 and at most 0.9"),
        (["--val_ratio", "0.1", "--val_path", "DATA"], "exclude each other"),
    ],
)
def test_bad_settings_are_one_line(more, problem, uneven, tmp_path):
    more = [str(uneven) if text == "DATA" else text for text in more]
    codes, printed = train([*flags(uneven, *more), "--output_dir", str(tmp_path / "out")], 1, tmp_path)
    assert codes == [2]
    assert [line for line in printed.splitlines() if line.startswith("error: ")] == [
        f"error: {line}"
        for line in [next(line.removeprefix("error: ") for line in printed.splitlines() if problem in line)]
    ]
