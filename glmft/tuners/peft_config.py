"""A LoRA configuration that peft wrote, read by allow-list: peft would import modules that it names, build regular
expressions of it that never end, and ask the network.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError, one_line
from glmft.family import PEFT_JSON
from glmft.files import write_json
from glmft.reading import is_file, read_json
from glmft.schema import FLAG, NULL, Kind, list_of, number, one_of, problems, table_of, text, whole
from glmft.settings.checks import MOST_ITERATIONS
from glmft.settings.setting import WIDE

LARGEST = 1 << 20  # bytes
PEFT_WEIGHTS, OLD_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
NAME = text(r"[\w.-]+", 300, "a module's name")


def is_bounded_regex(value: Any) -> bool:
    """Whether a regular expression is sure to end soon on a module's name: nothing repeats that holds a choice."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w.\\|()*+?^$\[\]:-]{1,300}", value):
        return False
    if re.search(r"\)[*+?{]|\\[1-9]|\(\?[^:]", value) or len(re.findall(r"[*+]", value)) > 4:
        return False
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


REGEX = Kind("a plain regular expression (no repeated groups, at most four * or +)", is_bounded_regex)


def _is_start(value: Any) -> bool:
    if isinstance(value, bool) or value in ("gaussian", "olora", "orthogonal", "pissa"):
        return True
    iterations = re.fullmatch(r"pissa_niter_([0-9]{1,4})", value) if isinstance(value, str) else None
    return iterations is not None and 0 < int(iterations[1]) <= MOST_ITERATIONS


def _pattern_of(kind: Kind) -> Kind:
    values = table_of(kind, 2000)
    return Kind(
        f"an object of plain regular expressions, each value {kind.rule}",
        lambda value: values.passes(value) and all(map(is_bounded_regex, value)),
    )


# What is handed on to peft.
KEYS: dict[str, Kind] = {
    "r": whole(1, WIDE),
    "lora_alpha": number(1e-6, 1e6),
    "lora_dropout": number(0, 1),
    "target_modules": list_of(NAME, 2000) | REGEX,
    "exclude_modules": list_of(NAME, 2000) | REGEX | NULL,
    "fan_in_fan_out": FLAG,
    "bias": one_of("none", "all", "lora_only"),
    "use_rslora": FLAG,
    "use_dora": FLAG,
    "lora_bias": FLAG,
    "modules_to_save": list_of(NAME, 2000) | NULL,
    "init_lora_weights": Kind("true, false, gaussian, olora, orthogonal, pissa or pissa_niter_N", _is_start),
    "layers_to_transform": list_of(whole(0, 10_000), 10_000) | whole(0, 10_000) | NULL,
    "layers_pattern": list_of(NAME, 100) | NAME | NULL,
    "rank_pattern": _pattern_of(whole(1, WIDE)),
    "alpha_pattern": _pattern_of(number(1e-6, 1e6)),
}
# What describes the folder and changes nothing.
NOTES: dict[str, Kind] = {
    "peft_type": one_of("LORA"),
    "task_type": text(longest=100) | NULL,
    "base_model_name_or_path": text() | NULL,
    "revision": text(longest=300) | NULL,
    "inference_mode": FLAG,
    "peft_version": text(longest=100) | NULL,
    "auto_mapping": table_of(text() | NULL, 10) | NULL,  # of use to peft's Auto classes only
    "megatron_core": text(longest=300) | NULL,  # of use with `megatron_config` only, which is refused
    "qalora_group_size": whole(1),
}

# What peft 0.5 wrote. Every later one refuses a file with a key that it does not know yet.
CLASSIC = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("r", "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "modules_to_save"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern"),
    *("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
    *("encoder_hidden_size", "prefix_projection"),
}


def adapter_file(folder: Path) -> Path:
    """The weights of an adapter that peft wrote; before 0.6 it wrote a pickle, of which tensors alone are read."""
    old = folder / OLD_WEIGHTS
    return old if is_file(old) and not is_file(folder / PEFT_WEIGHTS) else folder / PEFT_WEIGHTS


def write_peft_config(config: Any, folder: Path) -> None:
    """Write adapter_config.json so that old versions of peft read it: classic keys, and what differs from a default.

    Args:
        config: one of peft's.
    """
    usual = type(config)().to_dict()
    kept = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
        if key in CLASSIC or (key != "peft_version" and value != usual.get(key))
    }
    write_json(folder / PEFT_JSON, dict(sorted(kept.items())))


def read_peft_config(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says, checked.

    Raises:
        ConfigError: values of wrong types, another kind of adapter, or kinds of LoRA that are not known here.
    """
    path = folder / PEFT_JSON
    given = read_json(path, LARGEST)
    wrong = problems({"peft_type": None, "r": None, "target_modules": None, **given}, {**KEYS, **NOTES}, path)
    wrong += [
        f"{path}: {one_line(key, 60)} is a kind of LoRA that is not known here; take it out, or merge with peft"
        for key, value in given.items()
        if key not in KEYS and key not in NOTES and value not in (None, False) and value != {} and value != []
    ]
    if wrong:
        raise ConfigError(wrong)
    return given


def lora_config(given: dict[str, Any]) -> Any:
    """peft's configuration of what `read_peft_config` gave."""
    from peft import LoraConfig

    known = {f.name for f in dataclasses.fields(LoraConfig)}
    taken = {key: given[key] for key in KEYS if key in given and key in known}
    return LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **taken)


def changes_base(given: dict[str, Any]) -> bool:
    """Whether such an adapter trains the base's own biases, or starts by taking components out of the base's weights.

    It cannot share its base with others, then.
    """
    start = given.get("init_lora_weights", True)
    return given.get("bias", "none") != "none" or (isinstance(start, str) and start.startswith(("pissa", "olora")))
