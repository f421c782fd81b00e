"""Whole runs over quantised bases, against the same numbers in floats."""

import json
import shutil

import pytest
import torch
from ranks import BASE, LORA, SLOW, metrics, train
from safetensors.torch import load_file
from test_gradients import LORA_CONFIG, assert_same, by_engine, by_hand

import glmft
from benchmarks.quantised import trained_f1
from glmft.models import nf4
from glmft.models.loading import load_config, load_model

needs_bitsandbytes = pytest.mark.skipif(
    not nf4.is_installed(), reason="bitsandbytes, an optional extra, is not installed"
)
STAGES = ["ds_zero0.json", "ds_zero1.json", "ds_zero2_no_offload.json", "ds_zero2_offload.json"]
ZERO3 = "ds_zero3_no_offload.json"
FAST = {("4", ZERO3, 2), ("8", "ds_zero1.json", 2), ("nf4", "ds_zero2_no_offload.json", 2)}
MATRIX = [
    pytest.param(
        quantisation,
        stage,
        ranks,
        marks=[
            *([needs_bitsandbytes] if quantisation == "nf4" else []),
            *([] if (quantisation, stage, ranks) in FAST else [SLOW]),
        ],
    )
    for quantisation in ("4", "8", "nf4")
    for stage in [*STAGES, *([] if quantisation == "nf4" else [ZERO3])]
    for ranks in (1, 2)
]


@pytest.fixture(scope="session")
def in_floats(tmp_path_factory):
    """Makes a folder that holds in floats what the base's layers are in a quantisation."""

    def make(quantisation: str):
        folder = tmp_path_factory.mktemp(f"floats-of-{quantisation}") / "base"
        quantised = load_model(load_config(BASE, quantization_bit=quantisation), BASE, torch.float32)
        plain = load_model(load_config(BASE), BASE, torch.float32)
        for name, module in quantised.named_modules():
            if hasattr(module, "dequantised"):
                plain.get_submodule(name).weight.data = module.dequantised()
            elif type(module).__name__ == "Linear4bit":
                from bitsandbytes.functional import dequantize_4bit

                weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
                plain.get_submodule(name).weight.data = weight.float()
        shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        plain.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize(("quantisation", "stage", "ranks"), MATRIX)
def test_every_zero_stage_gives_the_gradient_computed_by_hand(quantisation, stage, ranks, in_floats, uneven, tmp_path):
    want = by_hand(uneven, 8, LORA_CONFIG, base=in_floats(quantisation))
    flags = [*LORA, "--quantization_bit", quantisation]
    assert_same(by_engine(uneven, tmp_path, 8 // (2 * ranks), 2, ranks, stage, flags), want)


@pytest.mark.parametrize("quantisation", ["4", pytest.param("nf4", marks=[needs_bitsandbytes, SLOW])])
def test_a_packed_checkpointed_p_tuning_run_logs_the_losses_of_a_run_over_floats(
    quantisation, in_floats, uneven, tmp_path
):
    argv = ["--train_type", "ptuning", "--pre_seq_len", "4", "--prefix_hidden_size", "24", "--packing"]
    argv += ["--gradient_checkpointing", "--max_len", "160", "--max_src_len", "80", "--max_steps", "4"]
    argv += ["--per_device_train_batch_size", "2", "--show_loss_step", "1", "--train_path", str(uneven)]
    argv += ["--val_path", str(uneven), "--eval_steps", "2"]  # what follows a validation trains on as before it
    floats = str(in_floats(quantisation))
    runs = {"quantised": ["--quantization_bit", quantisation], "floats": ["--model_name_or_path", floats]}
    for name, flags in runs.items():
        codes, printed = train([*argv, *flags, "--output_dir", str(tmp_path / name)], 1, tmp_path)
        assert codes == [0], printed
    logged = [[line.get("loss", line.get("eval_loss")) for line in metrics(tmp_path / name)] for name in runs]
    assert len(logged[0]) == 4 + 2
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)
    record = json.loads((tmp_path / "quantised" / "glmft_adapter.json").read_text(encoding="utf-8"))
    assert record["base_quantization"] == quantisation


@SLOW
@pytest.mark.parametrize("quantisation", ["4", pytest.param("nf4", marks=needs_bitsandbytes)])
def test_a_killed_run_goes_on_to_the_same_bits(quantisation, uneven, tmp_path):
    argv = [*LORA, "--lora_dropout", "0.1", "--quantization_bit", quantisation, "--train_path", str(uneven)]
    argv += ["--max_len", "512", "--max_src_len", "256", "--per_device_train_batch_size", "2"]
    argv += ["--max_steps", "6", "--save_model_step", "2"]
    codes, printed = train([*argv, "--output_dir", str(tmp_path / "whole")], 1, tmp_path)
    assert codes == [0], printed
    train([*argv, "--output_dir", str(tmp_path / "killed")], 1, tmp_path, die_after=5)
    resumed = [*argv, "--output_dir", str(tmp_path / "killed"), "--resume", "yes"]
    other = [*resumed, "--quantization_bit", "8"]
    codes, printed = train(other, 1, tmp_path)
    assert codes != [0]
    assert f"quantization_bit of the base was {quantisation}, now it is 8; give the same settings" in printed
    codes, printed = train(resumed, 1, tmp_path)
    assert codes == [0], printed
    whole, killed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(killed[name], tensor) for name, tensor in whole.items())
    model, _ = glmft.load(tmp_path / "killed", quantization_bit=quantisation)
    assert model(input_ids=torch.tensor([[5, 6]])).logits.isfinite().all()


@needs_bitsandbytes
def test_zero3_over_nf4_is_refused_in_one_line(tmp_path):
    argv = ["--quantization_bit", "nf4", "--ds_file", ZERO3, "--output_dir", str(tmp_path / "out")]
    codes, printed = train(argv, 1, tmp_path)
    assert codes == [2]
    assert "error: --ds_file: ZeRO-3 cannot partition the weights of bitsandbytes" in printed
    assert "Traceback" not in printed


@SLOW
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_quickstart_learns_as_well_over_four_bits(seed, tmp_path):
    floats, four_bits = (trained_f1(tmp_path / str(kind), seed, kind) for kind in (None, "4"))
    assert four_bits >= floats - 0.06
