"""A run that goes on from a checkpoint ends with the same bits as one that never stopped."""

import shutil

import pytest
import torch
from ranks import train
from safetensors.torch import load_file

import glmft
from glmft.generation import answer

FAMILIES = ["glm", "glm2", "glm3"]

TUNERS = {
    "lora": ["--train_type", "lora", "--lora_dropout", "0.1", "--lora_dim", "4"],
    "lora-plus": ["--train_type", "lora", "--lora_module_name", "all-linear", "--loraplus_lr_ratio", "4"],
    "lora-dora": ["--train_type", "lora", "--use_dora", "--modules_to_save", "final_layernorm"],
    "lora-pissa": ["--train_type", "lora", "--init_lora_weights", "pissa", "--lora_dim", "4"],
    "ptuning": ["--train_type", "ptuning", "--pre_seq_len", "4", "--prefix_hidden_size", "24"],
    "prompt": [
        "--train_type",
        "prompt",
        "--pre_seq_len",
        "4",
        "--prompt_encoder",
        "lstm",
        "--prompt_hidden_size",
        "24",
    ],
    "freeze": ["--train_type", "freeze", "--freeze_last_n", "1", "--freeze_part", "attention"],
    "full": ["--train_type", "full"],
}
WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
STEPS = ["--max_len", "512", "--per_device_train_batch_size", "2", "--max_steps", "6", "--save_model_step", "3"]
CHOSEN = [
    ("lora", "glm3", "ds_zero2_no_offload.json", 1),
    ("lora-plus", "glm2", "ds_zero3_no_offload.json", 2),
    ("lora-pissa", "glm", "ds_zero1.json", 2),
    ("ptuning", "glm", "ds_zero2_no_offload.json", 2),
    ("prompt", "glm2", "ds_zero3_no_offload.json", 2),
    ("freeze", "glm", "ds_zero0.json", 1),
    ("full", "glm2", "ds_zero2_no_offload.json", 1),
]
STAGES = ["ds_zero0.json", "ds_zero1.json", "ds_zero2_no_offload.json", "ds_zero3_no_offload.json"]
MATRIX = [(t, f, STAGES[(i + j) % 4], 1 + (i + j) % 2) for i, t in enumerate(TUNERS) for j, f in enumerate(FAMILIES)]


@pytest.mark.parametrize(
    ("tuner", "family", "stage", "ranks"),
    [*CHOSEN, *(pytest.param(*case, marks=pytest.mark.slow) for case in MATRIX if case not in CHOSEN)],
)
def test_resumed_weights_are_bit_equal_and_answer(tuner, family, stage, ranks, official_folders, uneven, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    common = ["--train_path", str(uneven), "--model_name_or_path", str(official_folders[family]), "--ds_file", stage]
    common += [*STEPS, *TUNERS[tuner]]
    codes, printed = train([*common, "--output_dir", str(whole)], ranks, tmp_path)
    assert codes == [0] * ranks, printed
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
    shutil.copy(whole / "train_config.json", resumed)
    codes, printed = train([*common, "--output_dir", str(resumed), "--resume", "yes"], ranks, tmp_path)
    assert codes == [0] * ranks, printed
    file = WEIGHTS.get(tuner.split("-")[0], "glmft_adapter.safetensors")
    want, got = load_file(whole / file), load_file(resumed / file)
    early = load_file(whole / "checkpoint-3" / file)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    assert any(not torch.equal(tensor, early[name]) for name, tensor in want.items())
    model, tokenizer = glmft.load(resumed)
    assert len(answer(model, tokenizer, ["云川", "岭溪泉"], max_new_tokens=4)) == 2


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
