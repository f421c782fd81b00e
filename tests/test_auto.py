"""transformers' Auto classes find our classes, whoever is imported first, and never run a folder's code."""

import json
import shutil
import subprocess
import sys

import pytest
import transformers  # noqa: F401  registrations wait for it

from examples.quickstart.run import ROOT
from glmft import auto

LOAD = """
config = transformers.AutoConfig.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
print(type(config).__module__, type(model).__module__, type(tokenizer).__module__)
"""
ORDERS = {
    "glmft first": "import glmft, transformers",
    "transformers first": "import transformers, glmft",
    "trainer after glmft": "import glmft; from transformers import Trainer; import transformers",
    "auto classes first": "import transformers; transformers.AutoModelForCausalLM; import glmft",
}


@pytest.mark.parametrize("imports", ORDERS.values(), ids=ORDERS.keys())
def test_auto_classes_load_natively_whatever_auto_map_says(imports, model_folder, tmp_path):
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    }
    (model_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm"):
        bomb = f"open({str(tmp_path / 'exploded')!r}, 'w')\nraise SystemExit(9)\n"
        (model_folder / f"{name}.py").write_text(bomb, encoding="utf-8")
    code = f"{imports}\nfolder = {str(model_folder)!r}\n{LOAD}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded == ["glmft.models.configuration", "glmft.models.chatglm2", "glmft.tokenizers.chatglm2"]
    assert not (tmp_path / "exploded").exists()


EVERYTHING = """
import os
for trusted in (True, False, None):
    asked = {} if trusted is None else {"trust_remote_code": trusted}
    shown = [transformers.AutoConfig, transformers.AutoTokenizer, transformers.AutoModel]
    shown += [transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM]
    classes = [type(kind.from_pretrained(folder, **asked)).__module__ for kind in shown]
    assert all(name.startswith("glmft.") for name in classes), classes
    for kind in (transformers.AutoModelForSequenceClassification, transformers.AutoModelForTokenClassification):
        try:
            kind.from_pretrained(folder, **asked)
        except ValueError as error:
            assert "Unrecognized configuration class" in str(error), error
    answer = transformers.pipeline("text-generation", model=folder, **asked)("x", max_new_tokens=1)
print("all is ours")
"""


@pytest.mark.parametrize(
    ("imports", "named"),
    [
        pytest.param(imports, named, id=f"{order}-{named}", marks=[] if quick else pytest.mark.slow)
        for order, imports in ORDERS.items()
        for named in (True, False)
        for quick in [(order, named) in (("glmft first", True), ("auto classes first", False))]
    ],
)
def test_nothing_of_a_folder_is_executed_whatever_is_asked(imports, named, official_folders, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(official_folders["glm3"], folder)
    bomb = f"open({str(tmp_path / 'exploded')!r}, 'w')\nraise SystemExit(9)\n"
    for name in ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm", "custom_generate/generate"):
        (folder / f"{name}.py").parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(bomb, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for kind in ("CausalLM", "SequenceClassification", "TokenClassification"):
        config["auto_map"][f"AutoModelFor{kind}"] = f"modeling_chatglm.ChatGLMFor{kind}"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if not named:
        del tokenizer["tokenizer_class"]
        tokenizer["auto_map"] = {"AutoTokenizer": ["tokenization_chatglm.Other", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    code = f"{imports}\nfolder = {str(folder)!r}\n{EVERYTHING}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "all is ours" in done.stdout
    assert not (tmp_path / "exploded").exists()


def test_a_folders_auto_map_is_kept_in_what_is_saved(official_folders, tmp_path):
    from transformers import AutoConfig

    AutoConfig.from_pretrained(official_folders["glm3"]).save_pretrained(tmp_path)
    saved, there = (json.loads((f / "config.json").read_text()) for f in (tmp_path, official_folders["glm3"]))
    assert saved["auto_map"] == there["auto_map"]


def test_importing_glmft_imports_nothing_heavy():
    code = "import sys, glmft; print([n for n in ('torch', 'transformers', 'deepspeed', 'peft') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


INTERRUPTED = (
    """
import importlib.abc, sys
class Stop(importlib.abc.MetaPathFinder):
    seen = 0
    def find_spec(self, name, path, target=None):
        if name.startswith("transformers"):
            Stop.seen += 1
            if Stop.seen == int(sys.argv[1]):
                raise KeyboardInterrupt
if sys.argv[2] == "glmft":
    import glmft
stop = Stop()
sys.meta_path.insert(0, stop)
try:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    raise SystemExit("was not interrupted")
except KeyboardInterrupt:
    sys.meta_path.remove(stop)
import glmft, transformers
folder = sys.argv[3]
"""
    + LOAD
)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["glmft", "transformers"])
@pytest.mark.parametrize("at", [1, 20, 35, 42])
def test_an_import_that_was_interrupted_and_made_again_finds_our_classes(at, first, model_folder):
    command = [sys.executable, "-c", INTERRUPTED, str(at), first, str(model_folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded == ["glmft.models.configuration", "glmft.models.chatglm2", "glmft.tokenizers.chatglm2"]


def test_a_registration_that_was_interrupted_is_made_again(monkeypatch):
    calls = []

    def register(module):
        calls.append(module)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(auto, "REGISTRATIONS", {"json": register})
    with pytest.raises(KeyboardInterrupt):
        auto.register()
    auto.register()
    auto.register()
    assert calls == [json, json]
