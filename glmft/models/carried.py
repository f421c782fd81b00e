"""What a written model folder has beside weights, config and tokenizer: all that its base's folder had, code included.

Nothing of it is ever run here. With it, official code and other servers load the folder as if it were official.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from glmft.files import write_json
from glmft.reading import is_file, read_json_if_there

WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|ggml|npz)|.*\.index\.json")
OF_A_RUN = re.compile(
    r"train_config\.json|ds_config\.json|metrics\.jsonl|loss\.png|train_results\.json|trainer_state\.json|"
    r"rejected\.jsonl|bad_batch\.json|tensorboard|checkpoint-\d+|set-aside-\d+|best|predict|merged"
)
MODEL = "ChatGLMForConditionalGeneration"
CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE = (f"{kind}_chatglm" for kind in ("configuration", "modeling", "tokenization"))
CLASSES = {
    "AutoConfig": (CONFIG_FILE, "ChatGLMConfig"),
    "AutoModel": (MODEL_FILE, MODEL),
    "AutoModelForCausalLM": (MODEL_FILE, MODEL),
    "AutoModelForSeq2SeqLM": (MODEL_FILE, MODEL),
    "AutoModelForSequenceClassification": (MODEL_FILE, "ChatGLMForSequenceClassification"),
}
TOKENIZERS = ("ChatGLM4Tokenizer", "ChatGLMTokenizer")


def carry_files(base: Path, target: Path) -> None:
    """Copy what is there but weights, hidden files and what a training run left. Nothing in `target` is overwritten."""
    for path in sorted(base.iterdir()):
        if path.name.startswith(".") or WEIGHTS.fullmatch(path.name) or OF_A_RUN.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink() and path.resolve() not in target.resolve().parents:
            (target / path.name).mkdir(exist_ok=True)
            carry_files(path, target / path.name)
        elif is_file(path) and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def name_official_classes(folder: Path) -> None:
    """Where the official code lies in a folder and nothing says so (`auto_map`), say it as official folders do."""
    config = read_json_if_there(folder / "config.json")
    if config.get("model_type") != "chatglm":
        return
    classes = {auto: f"{file}.{name}" for auto, (file, name) in CLASSES.items() if _defines(folder, file, name)}
    if "AutoConfig" in classes and "AutoModel" in classes:
        _say(folder / "config.json", config, classes)
    name = next((name for name in TOKENIZERS if _defines(folder, TOKENIZER_FILE, name)), None)
    if name is not None:
        path = folder / "tokenizer_config.json"
        _say(path, read_json_if_there(path), {"AutoTokenizer": [f"{TOKENIZER_FILE}.{name}", None]})


def _say(path: Path, given: dict[str, Any], classes: dict[str, Any]) -> None:
    if given and not given.get("auto_map"):
        write_json(path, {**given, "auto_map": classes})


def _defines(folder: Path, file: str, name: str) -> bool:
    """Whether the text of a Python file has a class of some name."""
    path = folder / f"{file}.py"
    text = path.read_text(encoding="utf-8", errors="replace") if is_file(path) else ""
    return re.search(rf"^class {name}\b", text, re.MULTILINE) is not None
