"""What a first run shows: how its data was read, where it stands, what it came to, and what cannot be right."""

import json

import pytest
import torch
from ranks import BASE, SLOW, metrics, train
from safetensors.torch import load_file

FLAGS = ["--model_name_or_path", str(BASE), "--show_loss_step", "2", "--per_device_train_batch_size", "2"]


def test_a_table_is_trained_on_and_the_first_record_is_answered_before_and_after(tmp_path):
    table, out = tmp_path / "table.csv", tmp_path / "out"
    table.write_text("question,answer\n" + "云川？,岭溪\n" * 4, encoding="utf-8")
    given = ["--train_path", str(table), *FLAGS, "--max_steps", "4", "--learning_rate", "0.5", "--output_dir", str(out)]
    codes, printed = train(given, 1, tmp_path)
    assert codes == [0], printed
    assert "data: read as question (question, answer)" in printed
    assert "note: --learning_rate 0.5 is not within 1e-05 to 0.005, as --train_type lora is usually given" in printed
    assert [line["epoch"] for line in metrics(out)] == [1.0, 2.0]
    assert "step 2/4  epoch 1.00  loss " in printed
    results = json.loads((out / "train_results.json").read_text(encoding="utf-8"))
    assert results["weight_change"] > 0
    assert f"the first record is answered {results['last_answer']!r}"[:60] in printed
    assert "the trained weights moved by " in printed


@SLOW
@pytest.mark.parametrize("stage", ["ds_zero0.json", "ds_zero2_no_offload.json", "ds_zero3_no_offload.json"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_asking_for_the_first_answer_leaves_the_run_as_it_is(ranks, stage, uneven, tmp_path):
    given = ["--train_path", str(uneven), *FLAGS, "--max_len", "512", "--max_steps", "4", "--ds_file", stage]
    weights = []
    for asks in ("True", "False"):
        out = tmp_path / asks
        codes, printed = train([*given, "--compare_answers", asks, "--output_dir", str(out)], ranks, tmp_path)
        assert codes == [0] * ranks, printed
        assert ("the first record is answered" in printed) == (asks == "True")
        weights.append(load_file(out / "adapter_model.safetensors"))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@SLOW
def test_a_gradient_of_zero_is_told(tmp_path):
    table, out = tmp_path / "table.tsv", tmp_path / "out"
    table.write_text("text\n" + "云川岭溪\n" * 4, encoding="utf-8")
    given = ["--train_path", str(table), *FLAGS, "--max_steps", "12", "--lora_dropout", "0.99999999"]
    codes, printed = train([*given, "--output_dir", str(out)], 1, tmp_path)
    assert codes == [0], printed
    assert printed.count("warning: the gradient was exactly 0 for 10 steps") == 1
    assert "step 10/12" in printed.partition("warning: the gradient was exactly 0")[0]
