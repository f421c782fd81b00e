"""Which of the model families a folder holds, read from its JSON files and the kind of its vocabulary.

Official folders with remote code say `model_type: chatglm`; ChatGLM2 and ChatGLM3 differ in their recorded names and
little else. GLM-4 is also there in transformers' own layout.
"""

import re
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError
from glmft.reading import is_file, read_json_if_there

FAMILIES = {"glm": "ChatGLM-6B", "glm2": "ChatGLM2-6B", "glm3": "ChatGLM3-6B", "glm4": "GLM-4-9B"}
QUANTISATIONS = ("8", "4", "nf4")  # ways to hold the weights of the layers
FAMILY_KEY = "glmft_family"
ADAPTER_JSON, PEFT_JSON = "glmft_adapter.json", "adapter_config.json"  # what an adapter's folder holds
RECORD_JSON = "glmft_training.json"  # how a model was trained whole or merged, in its own folder
_NAMES = {"chatglm3": "glm3", "chatglm2": "glm2", "codegeex2": "glm2", "chatglm-6b": "glm", "glm-4": "glm4"}
GLM4_VOCABULARY = 151552
NATIVE_TYPES = ("glm", "glm4")  # of GLM-4 in transformers' own layout


def family_of_config(config: dict[str, Any]) -> str | None:
    """The family that the keys of a config.json prove, or None where ChatGLM2 and ChatGLM3 look alike."""
    if config.get(FAMILY_KEY) in list(FAMILIES):
        return config[FAMILY_KEY]
    if config.get("model_type") in NATIVE_TYPES:
        return "glm4"
    if "inner_hidden_size" in config or "position_encoding_2d" in config:
        return "glm"
    ends = config.get("eos_token_id")
    several_ends = isinstance(ends, list) and config.get("pad_token_id") in ends  # and the first of them pads
    if config.get("padded_vocab_size") == GLM4_VOCABULARY or several_ends:
        return "glm4"
    return _family_of_name(config.get("_name_or_path"))


def is_chatglm(folder: str | Path) -> bool:
    """Whether a folder is one of the official layout, as its config.json says."""
    return read_json_if_there(Path(folder) / "config.json").get("model_type") == "chatglm"


def is_native(folder: str | Path) -> bool:
    """Whether a model folder, or a tokenizer's, is in transformers' own layout."""
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return read_json_if_there(folder / "config.json").get("model_type") in NATIVE_TYPES
    return (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file()


def family_of_folder(folder: str | Path, mode: str | None = None) -> str:
    """The family of a model or tokenizer folder.

    Args:
        folder: holds config.json, tokenizer_config.json or both.
        mode: what the user says it is; checked against the files where they say something.

    Raises:
        ConfigError: the files contradict `mode`, or say nothing and `mode` is not given.
    """
    folder = Path(folder)
    if mode is not None and mode not in FAMILIES:
        raise ConfigError(f"--mode {mode}: is none of {', '.join(FAMILIES)}")
    config = read_json_if_there(folder / "config.json")
    recorded = _recorded_family(folder, config)
    if "vision_config" in config:
        raise ConfigError(f"{folder}: holds GLM-4V, a model of images and text; glmft trains text models only")
    if recorded and mode and recorded != mode:
        raise ConfigError(f"--mode {mode}: {folder} holds a {recorded} model; give --mode {recorded} or another folder")
    if not (recorded or mode):
        raise ConfigError(
            f"{folder}: ChatGLM2 or ChatGLM3? Neither config.json nor tokenizer_config.json shows it; "
            f'say it with --mode glm2|glm3, or add "{FAMILY_KEY}" to config.json'
        )
    return mode or recorded


def _recorded_family(folder: Path, config: dict[str, Any]) -> str | None:
    family = family_of_config(config)
    if family:
        return family
    tokenizer = read_json_if_there(folder / "tokenizer_config.json")
    if is_tiktoken(folder / "tokenizer.model") or tokenizer.get("tokenizer_class") == "ChatGLM4Tokenizer":
        return "glm4"
    if tokenizer.get(FAMILY_KEY) in list(FAMILIES):
        return tokenizer[FAMILY_KEY]
    if is_native(folder):
        return "glm4"
    if "num_image_tokens" in tokenizer or (folder / "ice_text.model").is_file():
        return "glm"
    if "<|user|>" in str(tokenizer.get("chat_template", "")):
        return "glm3"
    return _family_of_name(tokenizer.get("name_or_path")) or _family_of_name(folder.name)


def is_tiktoken(file: Path) -> bool:
    """Whether a vocabulary is one of tiktoken, GLM-4's: a line each of a token in base64 and its rank."""
    if not is_file(file):
        return False
    with file.open("rb") as opened:
        return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", opened.read(64)) is not None


def _family_of_name(name: Any) -> str | None:
    lowered = str(name or "").lower()
    return next((family for part, family in _NAMES.items() if part in lowered), None)
