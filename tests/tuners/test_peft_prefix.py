"""Prefixes in peft's form: what peft computes with them is what we compute."""

import copy

import pytest
import torch
from peft import IA3Config, PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmft
from glmft.errors import CheckpointError
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
from glmft.tuners.peft_prefix import write_peft_prefix
from glmft.tuners.prefix import Prefix

FAMILIES = ("glm2", "glm3", "glm4")
METHODS = {
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "projected prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prompt encoder": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8),
    "ia3": IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["query_key_value", "dense_4h_to_h"],
        feedforward_modules=["dense_4h_to_h"],
    ),
}


def base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def rows(folder):
    return AutoTokenizer.from_pretrained(folder)(["云川", "云川岭溪泉"], padding=True, return_tensors="pt")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pefts_methods_train_generate_and_load(family, method, official_folders, tmp_path):
    folder, batch = official_folders[family], rows(official_folders[family])
    model = get_peft_model(base(folder), copy.deepcopy(METHODS[method]))  # which peft fills in
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(folder), tmp_path).eval()
    asked = {"do_sample": False, "max_new_tokens": 3}
    assert torch.equal(again.generate(**batch, **asked), model.eval().generate(**batch, **asked))


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_gives_the_same_in_pefts_form_and_back(family, projection, official_folders, tmp_path):
    folder, batch = official_folders[family], rows(official_folders[family])
    real = batch["attention_mask"].bool()
    model = Prefix(5, projection).apply(base(folder)).eval()
    write_peft_prefix(model, tmp_path / "peft")
    with torch.no_grad():
        expected = model(**batch).logits[real]
        theirs = PeftModel.from_pretrained(base(folder), tmp_path / "peft").eval()(**batch).logits[real]
        ours = glmft.load(tmp_path / "peft", dtype="fp32", device="cpu", base_model_path=folder)[0](**batch).logits[
            real
        ]
        plain = base(folder).eval()(**batch).logits[real]
    torch.testing.assert_close(theirs, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)
    assert (plain - expected).abs().max() > 0.1


def test_a_family_whose_positions_peft_cannot_count_is_refused(official_folders, tmp_path):
    model = Prefix(5, False).apply(base(official_folders["glm"]))
    with pytest.raises(CheckpointError, match="glmft converts it for ChatGLM2"):
        write_peft_prefix(model, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_prefix_of_another_shape_is_refused(official_folders, tmp_path, tiny_config):
    model = Prefix(5, False).apply(base(official_folders["glm2"]))
    write_peft_prefix(model, tmp_path / "peft")
    other = ChatGLM2ForConditionalGeneration(tiny_config(num_layers=1))
    with pytest.raises(CheckpointError, match="holds no prompt_embeddings of width"):
        Prefix(0, False, ptuning_checkpoint=str(tmp_path / "peft")).apply(other)
