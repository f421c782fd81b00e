"""Which of the three model families a folder holds, read from its JSON files alone.

All official folders say `model_type: chatglm`; ChatGLM2 and ChatGLM3 differ in their recorded names and little else.
"""

from pathlib import Path
from typing import Any

from glmft.errors import ConfigError
from glmft.files import read_json_if_there

FAMILIES = {"glm": "ChatGLM-6B", "glm2": "ChatGLM2-6B", "glm3": "ChatGLM3-6B"}
FAMILY_KEY = "glmft_family"
ADAPTER_JSON, PEFT_JSON = "glmft_adapter.json", "adapter_config.json"  # what an adapter's folder holds
_NAMES = {"chatglm3": "glm3", "chatglm2": "glm2", "codegeex2": "glm2", "chatglm-6b": "glm"}


def family_of_config(config: dict[str, Any]) -> str | None:
    """The family that the keys of a config.json prove, or None where ChatGLM2 and ChatGLM3 look alike."""
    if config.get(FAMILY_KEY) in FAMILIES:
        return config[FAMILY_KEY]
    if "inner_hidden_size" in config or "position_encoding_2d" in config:
        return "glm"
    return _family_of_name(config.get("_name_or_path"))


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
    if _is_glm4(config):
        raise ConfigError(f"{folder}: holds a GLM-4 model; glmft knows ChatGLM-6B, ChatGLM2-6B and ChatGLM3-6B")
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
    if tokenizer.get(FAMILY_KEY) in FAMILIES:
        return tokenizer[FAMILY_KEY]
    if "num_image_tokens" in tokenizer or (folder / "ice_text.model").is_file():
        return "glm"
    if "<|user|>" in str(tokenizer.get("chat_template", "")):
        return "glm3"
    return _family_of_name(tokenizer.get("name_or_path")) or _family_of_name(folder.name)


def _is_glm4(config: dict[str, Any]) -> bool:
    """GLM-4-9B has ChatGLM2's layout, but a tokenizer that is no sentencepiece model."""
    return "glm-4" in str(config.get("_name_or_path", "")).lower() or config.get("padded_vocab_size") == 151552


def _family_of_name(name: Any) -> str | None:
    lowered = str(name or "").lower()
    return next((family for part, family in _NAMES.items() if part in lowered), None)
