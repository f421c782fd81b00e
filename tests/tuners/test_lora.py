"""LoRA's settings: which modules they name, and what peft reads of them."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import glmft
from examples.quickstart.run import ROOT
from glmft.errors import CheckpointError
from glmft.models.loading import load_config, load_model, record_of
from glmft.tuners.lora import Lora


def test_modules_are_named_by_the_end_of_their_dotted_name_as_peft_matches(tiny_model):
    for name, count in (("dense", 3), ("self_attention.dense", 3), ("layers.1.mlp.dense_4h_to_h", 1)):
        tuner = Lora(3, 6, 0.0, name)
        assert tuner.problems(tiny_model()) == []
        trained = [n for n, p in tuner.apply(tiny_model()).named_parameters() if p.requires_grad]
        assert len(trained) == 2 * count
        assert all(f".{name}.lora_" in n for n in trained)


@pytest.mark.parametrize(("given", "recorded"), [(16.0, 16), (16, 16), (2.5, 2.5)])
@pytest.mark.parametrize("init", ["default", "pissa"])
def test_what_peft_reads_of_a_lora_is_what_was_trained(given, recorded, init, tiny_model, tmp_path):
    tuner = Lora(3, given, 0.05, "dense", init_lora_weights=init)
    model = tuner.apply(tiny_model())
    tuner.save(model, tuner.state(model), tmp_path, {"base_model_name_or_path": "base"})
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    twice = 2 if init == "pissa" else 1  # saved as plain LoRA of twice the rank
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3 * twice, recorded * twice, 0.05)
    assert type(config["lora_alpha"]) is type(recorded)
    assert (config["init_lora_weights"], config["inference_mode"]) == (True, True)
    assert (config["bias"], config["task_type"], config["target_modules"]) == ("none", "CAUSAL_LM", ["dense"])


# What LoraConfig of peft 0.5 knows.
OF_PEFT_0_5 = {
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "r"),
    *("target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "modules_to_save"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern"),
}


@pytest.mark.parametrize(("options", "more"), [({}, set()), ({"use_dora": True}, {"use_dora"})], ids=str)
def test_only_what_differs_from_pefts_defaults_stands_beside_the_keys_of_old_versions(
    options, more, tiny_model, tmp_path
):
    """peft 0.7 to 0.10 end with a TypeError at any key that they do not know."""
    tuner = Lora(3, 6, 0.05, "dense,query_key_value", modules_to_save="final_layernorm", **options)
    model = tuner.apply(tiny_model())
    tuner.save(model, tuner.state(model), tmp_path, {"base_model_name_or_path": "base"})
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config.keys() == OF_PEFT_0_5 | more
    assert config["target_modules"] == ["dense", "query_key_value"]


def adapter(base, folder):
    tuner = Lora(3, 6, 0.0, "dense,query_key_value")
    model = tuner.apply(load_model(load_config(base), base, torch.float32)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    folder.mkdir()
    tuner.save(model, tuner.state(model), folder, record_of(load_config(base), base))
    return model


def test_the_pickled_weights_of_old_peft_are_read_as_tensors_and_nothing_else(model_folder, tmp_path):
    model = adapter(model_folder, tmp_path / "lora")
    new, old = (tmp_path / "lora" / f"adapter_model.{ending}" for ending in ("safetensors", "bin"))
    torch.save(load_file(new), old)
    new.unlink()
    loaded, _ = glmft.load(tmp_path / "lora", dtype="fp32", device="cpu")
    merged, _ = glmft.load(glmft.merge(glmft.MergeConfig(model_dir=str(tmp_path / "lora"))), dtype="fp32", device="cpu")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=0, rtol=0)
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=2e-5, rtol=1e-4)
    torch.save({"weights": Lora(1, 1, 0.0, "dense")}, old)
    with pytest.raises(CheckpointError, match=r"adapter_model.bin: is torn or no weight file"):
        glmft.load(tmp_path / "lora")


BY_OLD_PEFT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import peft, glmft
assert peft.__version__ == sys.argv[2], peft.__version__
model, _ = glmft.load(sys.argv[4], dtype="fp32", device="cpu")
tuned = peft.PeftModel.from_pretrained(model, sys.argv[3]).eval()
with torch.no_grad():
    torch.save(tuned(input_ids=torch.arange(3, 20)[None]).logits, sys.argv[5])
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.5.0", "0.7.1", "0.10.0"])
def test_old_versions_of_peft_load_what_was_trained(version, model_folder, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "peft")]
    installed = subprocess.run([*pip, f"peft=={version}"], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"peft {version} cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    model = adapter(model_folder, tmp_path / "lora")
    arguments = [str(tmp_path / "peft"), version, str(tmp_path / "lora"), str(model_folder), str(tmp_path / "logits")]
    subprocess.run([sys.executable, "-c", BY_OLD_PEFT, *arguments], check=True, cwd=ROOT)
    with torch.no_grad():
        expected = model(input_ids=torch.arange(3, 20)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits", weights_only=True), expected, atol=1e-5, rtol=1e-5)
