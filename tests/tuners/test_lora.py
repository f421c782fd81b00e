"""LoRA's settings: which modules they name, and what peft reads of them."""

import json

import pytest

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
