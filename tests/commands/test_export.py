"""`glmft export` hands models and adapters over in forms that other programs load without our code."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from adapters import trained
from peft import PeftModel

import glmft
from glmft.cli import main
from glmft.commands.export import export
from glmft.errors import ConfigError
from glmft.models.loading import load_config, load_model
from glmft.settings.tools import ExportConfig
from glmft.tokenizers.loading import load_tokenizer
from glmft.tokenizers.to_fast import fast_tokenizer
from glmft.tuners.freeze import Freeze
from glmft.tuners.lora import Lora
from glmft.tuners.prefix import Prefix
from glmft.tuners.prompt import Prompt

CONVERTIBLE = ("glm2", "glm3", "glm4")
IDS = torch.arange(3, 40)[None]
TEXTS = (
    "云川岭溪 hello",
    "",
    " ",
    "\n\n a",
    "▁",
    "e\u0301 é 👍🏽\u200b",
    "a" * 40,
    " " * 9,
    "哈" * 20,
    "<0x0A>",
    "\x00\r\t",
)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


def native(folder):
    """A folder by transformers' own class."""
    model = transformers.GlmForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model


@pytest.mark.parametrize("family", CONVERTIBLE)
def test_transformers_own_class_computes_what_the_base_does(family, official_folders, tmp_path):
    shown = []
    out = export(
        ExportConfig(str(official_folders[family]), to="transformers", output_dir=str(tmp_path / "out")), shown.append
    )
    ours, tokenizer = glmft.load(official_folders[family], dtype="fp32", device="cpu")
    theirs = native(out)
    torch.testing.assert_close(logits(theirs), logits(ours), atol=1e-5, rtol=1e-5)
    assert theirs.config.model_type == "glm"
    assert theirs.generation_config.eos_token_id == tokenizer.stop_ids
    assert shown[0].startswith("logits over") and "not carried over" in shown[1]  # noqa: PT018
    assert not list(out.glob("*.py"))


@pytest.mark.parametrize("family", CONVERTIBLE)
def test_the_fast_tokenizer_has_the_same_ids_and_chats(family, official_folders):
    ours = load_tokenizer(official_folders[family])
    fast = fast_tokenizer(ours)
    for text in TEXTS:
        assert fast(text, add_special_tokens=False)["input_ids"] == ours.encode_text(text), repr(text)
        assert fast(text)["input_ids"] == ours(text)["input_ids"], repr(text)
    messages = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), TEXTS, strict=False)
    ]
    messages[1] |= {"content": "二"} | ({} if family == "glm2" else {"metadata": "get_weather"})
    ids = fast.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == ours.chat_ids(messages)
    assert len(fast) == len(ours)
    assert fast.decode(ours.encode_text("云川 hello.")) == "云川 hello."


@pytest.mark.parametrize(("ratio", "scales"), [(8, "base"), (8, "positions")])
def test_stretched_positions_are_carried_over_by_either_formula(ratio, scales, official_folders, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(official_folders["glm3"], base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "rope_ratio": ratio, "rope_ratio_scales": scales})
    (base / "config.json").write_text(text, encoding="utf-8")
    out = export(ExportConfig(str(base), to="transformers", output_dir=str(tmp_path / "out")))
    ours, _ = glmft.load(base, dtype="fp32", device="cpu")
    torch.testing.assert_close(logits(native(out)), logits(ours), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "tuner",
    [
        Lora(2, 4, 0.0, "all-linear", modules_to_save="final_layernorm"),
        Lora(3, 5, 0.0, "query_key_value", use_dora=True, use_rslora=True, modules_to_save="word_embeddings"),
        Lora(2, 4, 0.0, "dense", modules_to_save="query_key_value"),
    ],
    ids=str,
)
def test_lora_goes_over_merged_or_split_exactly_into_query_key_and_value(tuner, official_folders, tmp_path):
    base = official_folders["glm3"]
    model = trained(tuner, base, tmp_path / "lora")
    merged = export(ExportConfig(str(tmp_path / "lora"), to="transformers"))
    assert merged == tmp_path / "lora-transformers"
    torch.testing.assert_close(logits(native(merged)), logits(model), atol=0.01, rtol=0.01)
    split = export(ExportConfig(str(tmp_path / "lora"), to="peft"))
    assert sorted(path.name for path in split.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    bare = export(ExportConfig(str(base), to="transformers", output_dir=str(tmp_path / "base")))
    put_on = PeftModel.from_pretrained(native(bare), split).eval()
    torch.testing.assert_close(logits(put_on), logits(model), atol=1e-4, rtol=1e-4)


def test_lora_with_ranks_of_its_own_on_some_layers_is_split_with_them(official_folders, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = official_folders["glm2"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["query_key_value", "dense"],
        layers_to_transform=[0, 2],
        rank_pattern={"layers.2.self_attention.query_key_value": 4},
        alpha_pattern={"layers.0.self_attention.dense": 3},
        init_lora_weights=False,
    )
    model = get_peft_model(load_model(load_config(base), base, torch.float32), config).eval()
    model.save_pretrained(tmp_path / "lora")
    split = export(ExportConfig(str(tmp_path / "lora"), to="peft", base_model_path=str(base)))
    bare = export(ExportConfig(str(base), to="transformers", output_dir=str(tmp_path / "base")))
    put_on = PeftModel.from_pretrained(native(bare), split).eval()
    torch.testing.assert_close(logits(put_on), logits(model), atol=1e-4, rtol=1e-4)


def test_lora_for_the_official_layout_is_what_peft_reads_and_nothing_else(official_folders, tmp_path):
    base = official_folders["glm"]
    model = trained(Lora(2, 4, 0.0, "all-linear"), base, tmp_path / "lora")
    out = export(ExportConfig(str(tmp_path / "lora"), to="peft"))  # ChatGLM-6B has no other layout
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    ids = load_tokenizer(base)(["云川"], return_tensors="pt")["input_ids"]
    put_on = PeftModel.from_pretrained(load_model(load_config(base), base, torch.float32), out).eval()
    torch.testing.assert_close(logits(put_on, ids), logits(model, ids))


@pytest.mark.parametrize(("family", "hidden"), [("glm", None), ("glm2", None), ("glm3", 20)])
def test_a_prefix_becomes_an_official_p_tuning_checkpoint(family, hidden, official_folders, tmp_path):
    base = official_folders[family]
    model = trained(Prefix(3, True, hidden), base, tmp_path / "prefix")
    out = export(ExportConfig(str(tmp_path / "prefix"), to="official-ptuning"))
    stored = torch.load(out / "pytorch_model.bin", weights_only=True)
    assert all(name.startswith("transformer.prefix_encoder.") for name in stored)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (config["pre_seq_len"], config["prefix_projection"]) == (3, hidden is None)
    again, tokenizer = glmft.load(base, dtype="fp32", device="cpu", prefix=out)
    ids = tokenizer(["云川"], return_tensors="pt")["input_ids"]
    torch.testing.assert_close(logits(again, ids), logits(model, ids), atol=1e-5, rtol=1e-5)


def test_an_official_folder_with_pickled_weights_for_old_servers(official_folders, tmp_path, capsys):
    arguments = [str(official_folders["glm2"]), "--format", "bin", "--output_dir", str(tmp_path / "out")]
    assert main(["export", *arguments]) == 0
    assert "differ by at most 0 " in capsys.readouterr().out
    assert (tmp_path / "out" / "pytorch_model.bin").is_file()
    (ours, _), (again, _) = (
        glmft.load(p, dtype="fp32", device="cpu") for p in (official_folders["glm2"], tmp_path / "out")
    )
    torch.testing.assert_close(logits(again), logits(ours), atol=0, rtol=0)


def test_what_a_form_cannot_express_is_refused_with_the_reason(official_folders, native_folders, tmp_path):
    glm2 = official_folders["glm2"]
    for name, tuner in (
        ("lora", Lora(2, 4, 0.0, "dense")),
        ("prefix", Prefix(3, False)),
        ("prompt", Prompt(3, "none")),
    ):
        trained(tuner, glm2, tmp_path / name)
    trained(Freeze("layers.0."), glm2, tmp_path / "freeze")
    for path, to, why in (
        (official_folders["glm"], "transformers", "ChatGLM-6B has no counterpart"),
        (native_folders["native-glm"], "transformers", "own layout already"),
        (tmp_path / "prefix", "transformers", "no place for virtual tokens"),
        (tmp_path / "prompt", "official", "no official model has a place for"),
        (tmp_path / "freeze", "peft", "peft has no form for it"),
        (glm2, "peft", "peft has no form for it"),
        (tmp_path / "lora", "official-ptuning", "holds no P-Tuning prefix"),
        (f"{tmp_path / 'lora'}:0.5", "peft", "takes one adapter"),
        (tmp_path / "nowhere", "official", "no such folder"),
    ):
        with pytest.raises(ConfigError, match=why):
            export(ExportConfig(str(path), to=to, output_dir=str(tmp_path / "out")))
        assert not (tmp_path / "out").exists()


WITHOUT_US = """
import sys, torch, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
asked = [{"role": "user", "content": "你好"}]
chat = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**chat).logits
    ids = model.generate(**chat, max_new_tokens=8, do_sample=False)
assert not any(name.partition(".")[0] == "glmft" for name in sys.modules)
torch.save((chat["input_ids"], logits, ids), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", CONVERTIBLE)
def test_a_process_that_has_none_of_our_code_answers_the_same(family, official_folders, tmp_path):
    out = export(ExportConfig(str(official_folders[family]), to="transformers", output_dir=str(tmp_path / "out")))
    command = [sys.executable, "-c", WITHOUT_US, str(out), str(tmp_path / "answer")]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    ids, theirs, generated = torch.load(tmp_path / "answer", weights_only=True)
    ours, tokenizer = glmft.load(official_folders[family], dtype="fp32", device="cpu")
    assert ids[0].tolist() == tokenizer.chat_ids([{"role": "user", "content": "你好"}])
    torch.testing.assert_close(logits(ours, ids), theirs, atol=1e-5, rtol=1e-5)
    again = ours.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=tokenizer.stop_ids
    )
    assert torch.equal(again, generated)
