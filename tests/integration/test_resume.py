"""A run that goes on from a checkpoint ends with the same bits as one that never stopped."""

import shutil

import pytest
import torch
from ranks import train
from safetensors.torch import load_file

TUNERS = {
    "lora": ["--train_type", "lora", "--lora_dropout", "0.1", "--lora_dim", "4"],
    "ptuning": ["--train_type", "ptuning", "--pre_seq_len", "4"],
    "freeze": ["--train_type", "freeze", "--freeze_module_name", "layers.3."],
    "full": ["--train_type", "full"],
}
WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
STEPS = ["--max_len", "512", "--per_device_train_batch_size", "2", "--max_steps", "6", "--save_model_step", "3"]


@pytest.mark.parametrize(
    ("tuner", "stage", "ranks"),
    [
        ("lora", "ds_zero2_no_offload.json", 1),
        ("lora", "ds_zero3_no_offload.json", 2),
        ("ptuning", "ds_zero2_no_offload.json", 2),
        ("freeze", "ds_zero0.json", 1),
        ("full", "ds_zero2_no_offload.json", 1),
    ],
)
def test_resumed_weights_are_bit_equal_to_uninterrupted_ones(tuner, stage, ranks, uneven, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    common = ["--train_path", str(uneven), "--ds_file", stage, *STEPS, *TUNERS[tuner]]
    codes, printed = train([*common, "--output_dir", str(whole)], ranks, tmp_path)
    assert codes == [0] * ranks, printed
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
    shutil.copy(whole / "train_config.json", resumed)
    codes, printed = train([*common, "--output_dir", str(resumed), "--resume", "yes"], ranks, tmp_path)
    assert codes == [0] * ranks, printed
    file = WEIGHTS.get(tuner, "glmft_adapter.safetensors")
    want, got = load_file(whole / file), load_file(resumed / file)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    assert not torch.equal(next(iter(want.values())), next(iter(load_file(whole / "checkpoint-3" / file).values())))


def test_a_torn_checkpoint_is_passed_over_with_a_warning(uneven, tmp_path):
    common = ["--train_path", str(uneven), *STEPS, "--save_model_step", "2", *TUNERS["lora"]]
    common += ["--output_dir", str(tmp_path / "out")]
    assert train(common, 1, tmp_path)[0] == [0]
    torn = tmp_path / "out" / "checkpoint-4" / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    codes, printed = train([*common, "--resume", "yes"], 1, tmp_path)
    assert codes == [0], printed
    assert "checkpoint-4" in printed
    assert "trying the one before" in printed
    assert "step 3/6" not in printed  # logged every ten steps and at the end
    assert "step 6/6" in printed
