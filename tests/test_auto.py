"""transformers' Auto classes find our classes, whoever is imported first, and never run a folder's code."""

import json
import subprocess
import sys

import pytest

from examples.quickstart.run import ROOT

LOAD = """
config = transformers.AutoConfig.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
print(type(config).__module__, type(model).__module__, type(tokenizer).__module__)
"""
ORDERS = {
    "glmft first": "import glmft, transformers",
    "transformers first": "import transformers, glmft",
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


def test_importing_glmft_imports_nothing_heavy():
    code = "import sys, glmft; print([n for n in ('torch', 'transformers', 'deepspeed', 'peft') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
