"""Load a base model, a merged model or an adapter on its base, from the folder alone."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError
from glmft.family import ADAPTER_JSON, FAMILIES, PEFT_JSON
from glmft.files import read_json
from glmft.settings.defaults import EMBEDDED, shipped


@dataclass(frozen=True)
class Place:
    """Where a model lies: its base folder and, if the path named an adapter, the adapter's folder and tuner."""

    base: Path
    adapter: Path | None = None
    train_type: str | None = None


def locate(path: str | Path | None, base_model_path: str | Path | None = None) -> Place:
    """What a model path stands for.

    Args:
        path: a model folder or an adapter folder; None: the embedded tiny base.
        base_model_path: an adapter's base, if it is not where the adapter recorded it.

    Raises:
        ConfigError: no such folder, nothing loadable in it, or an adapter without its base.
    """
    folder = Path(path) if path is not None else shipped(f"{EMBEDDED}/base")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder (nothing is downloaded)")
    if (folder / "config.json").is_file():
        return Place(folder)
    if (folder / ADAPTER_JSON).is_file():
        described = read_json(folder / ADAPTER_JSON)
    elif (folder / PEFT_JSON).is_file():
        described = {"train_type": "lora", **read_json(folder / PEFT_JSON)}
    else:
        raise ConfigError(f"{folder}: holds neither a model (config.json) nor an adapter ({ADAPTER_JSON}, {PEFT_JSON})")
    base = _find_base(folder, described, base_model_path)
    _check_fingerprint(folder, described, base)
    return Place(base, folder, described.get("train_type"))


def _find_base(folder: Path, described: dict[str, Any], given: str | Path | None) -> Path:
    recorded = described.get("base_model_name_or_path") or ""
    places = [given] if given is not None else [recorded, folder / recorded, folder.parent / Path(recorded).name]
    for place in places:
        if place and (Path(place) / "config.json").is_file():
            return Path(place)
    raise ConfigError(
        f"{folder}: its base model is not at {given or recorded or '(none recorded)'}; say where with --base_model_path"
    )


def _check_fingerprint(folder: Path, described: dict[str, Any], base: Path) -> None:
    from glmft.models.loading import fingerprint

    recorded = described.get("base_fingerprint")
    if recorded and fingerprint(base) != recorded:
        raise ConfigError(f"{folder}: was trained on another base than {base}; give the right one by --base_model_path")


def load(
    path: str | Path | None = None,
    *,
    mode: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    base_model_path: str | Path | None = None,
    prefix: str | Path | None = None,
    attn_implementation: str = "sdpa",
) -> tuple[Any, Any]:
    """Model, in eval mode on its device, and tokenizer.

    Args:
        path: folder of a base model in the official layout, of a merged model, or of an adapter; None: the embedded
            tiny base.
        mode: the family (`glm`, `glm2`, `glm3`, `glm4`), where the folder does not tell.
        dtype: `auto` (bf16 where the accelerator has it, fp32 on a CPU), `fp32`, `bf16` or `fp16`.
        base_model_path: an adapter's base model, if it has moved.
        prefix: a P-Tuning v2 checkpoint to put onto the base model: a folder or file with
            `transformer.prefix_encoder.*`, safetensors or the official `pytorch_model.bin`.

    Raises:
        ConfigError, CheckpointError: with one line for what is wrong and how to mend it.

    Example:
        >>> model, tokenizer = glmft.load("output/my-adapter")
        >>> glmft.answer(model, tokenizer, ["你好"])
    """
    from glmft.device import choose_device, choose_dtype
    from glmft.models.loading import load_config, load_model
    from glmft.tokenizers.loading import load_tokenizer
    from glmft.tuners import load_adapter

    if mode is not None and mode not in FAMILIES:
        raise ConfigError(f"mode {mode!r}: is none of {', '.join(FAMILIES)}")
    chosen = choose_device(device)
    number_format = choose_dtype(dtype, chosen)
    place = locate(path, base_model_path)
    config = load_config(place.base, mode)
    if config.rope_line:
        logging.getLogger("glmft").warning(config.rope_line)
    tokenizer = load_tokenizer(place.base, config.family)
    model = load_model(config, place.base, number_format, attn_implementation)
    if place.adapter:
        model = load_adapter(model, place.adapter, place.train_type)
    if prefix is not None:
        from glmft.tuners.prefix import put_prefix

        put_prefix(model, Path(prefix))
    return model.to(chosen).eval(), tokenizer
