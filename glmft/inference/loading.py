"""Load a base model, a merged model or an adapter on its base, from the folder alone."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmft.dist import env_local_rank
from glmft.errors import ConfigError
from glmft.family import ADAPTER_JSON, FAMILIES, PEFT_JSON, QUANTISATIONS, RECORD_JSON
from glmft.reading import is_file, read_json
from glmft.settings.aliases import meant_value
from glmft.settings.checks import require_attention
from glmft.settings.config import DataSettings
from glmft.settings.defaults import EMBEDDED, shipped
from glmft.settings.recorded import DESCRIBED, description_problems, trained_with


@dataclass(frozen=True)
class Place:
    """Where a model lies: its base folder and, if the path named an adapter, the adapter's folder and tuner.

    Args:
        quantisation: how the base was held when the adapter was trained, as `config.quantisation` says it.
        record: what the adapter, or the folder of a model that was trained whole or merged, tells of its training;
            empty for a base.
    """

    base: Path
    adapter: Path | None = None
    train_type: str | None = None
    quantisation: str | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def trained_folder(self) -> Path | None:
        """The folder of what was trained; None for a base."""
        return self.adapter or (self.base if self.record else None)

    @property
    def trained_with(self) -> DataSettings | None:
        """How records were read and cut, as far as it is recorded."""
        return trained_with(self.record)

    def mode(self, given: str | None) -> str | None:
        """The family to load: as recorded, else as given. Raises ConfigError if these differ."""
        recorded = self.record.get("family")
        if given and recorded and given != recorded:
            raise ConfigError(
                f"--mode {given}: {self.trained_folder} was trained on a {recorded} model; leave --mode out"
            )
        return recorded or given


def locate(
    path: str | Path | None, base_model_path: str | Path | None = None, flag: str = "--base_model_path"
) -> Place:
    """What a model path stands for.

    Args:
        path: a model folder or an adapter folder; None: the embedded tiny base.
        base_model_path: an adapter's base, if it is not where the adapter recorded it.
        flag: what says so on the command line.

    Raises:
        ConfigError: no such folder, nothing loadable in it, or an adapter without its base.
    """
    folder = Path(path) if path is not None else shipped(f"{EMBEDDED}/base")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder (nothing is downloaded)")
    if is_file(folder / "config.json"):
        return Place(folder, record=_described(folder / RECORD_JSON) if is_file(folder / RECORD_JSON) else {})
    if is_file(folder / ADAPTER_JSON):
        described = _described(folder / ADAPTER_JSON)
    elif is_file(folder / PEFT_JSON):
        from glmft.tuners.peft_config import read_peft_config
        from glmft.tuners.peft_prefix import is_peft_prefix, read_base

        if is_peft_prefix(folder):
            return Place(_find_base(folder, read_base(folder), base_model_path, flag), folder)
        given = read_peft_config(folder)
        described = {"train_type": "lora", "base_model_name_or_path": given.get("base_model_name_or_path")}
    else:
        raise ConfigError(f"{folder}: holds neither a model (config.json) nor an adapter ({ADAPTER_JSON}, {PEFT_JSON})")
    base = _find_base(folder, described, base_model_path, flag)
    _check_fingerprint(folder, described, base, flag)
    return Place(base, folder, described.get("train_type"), described.get("base_quantization"), described)


def _described(file: Path) -> dict[str, Any]:
    """What a description says that may be said. Raises ConfigError."""
    described = read_json(file)
    if wrong := description_problems(described, file):
        raise ConfigError(wrong)
    return {name: value for name, value in described.items() if name in DESCRIBED}


def _find_base(folder: Path, described: dict[str, Any], given: str | Path | None, flag: str) -> Path:
    recorded = described.get("base_model_name_or_path") or ""
    places = [given] if given is not None else [recorded, folder / recorded, folder.parent / Path(recorded).name]
    for place in places:
        if place and is_file(Path(place) / "config.json"):
            return Path(place)
    raise ConfigError(
        f"{folder}: its base model is not at {given or recorded or '(none recorded)'}; say where with {flag}"
    )


def _check_fingerprint(folder: Path, described: dict[str, Any], base: Path, flag: str) -> None:
    from glmft.models.loading import fingerprint, is_quantised

    recorded = described.get("base_fingerprint")
    if not recorded or fingerprint(base) == recorded:
        return
    # The weights of its layers are other numbers in another quantisation; the embedding is in floats in all of them.
    other = described.get("base_quantization") or is_quantised(base)
    if not other or fingerprint(base, embedding_only=True) != described.get("base_embedding"):
        raise ConfigError(f"{folder}: was trained on another base than {base}; give the right one by {flag}")


def warn_of_quantisation(place: Place, config: Any, flag: str = "") -> None:
    """Say so where an adapter meets its base in another quantisation than the one that it was trained over.

    Args:
        config: the base's, as it will be held.
        flag: what would hold it as it was, if followed by its name.
    """
    if place.adapter is None or not (place.adapter / ADAPTER_JSON).is_file():
        return  # what peft wrote does not tell
    was, now = place.quantisation, config.quantisation
    if was != now:
        mend = f"; {flag} {was} gives the same" if flag and was in QUANTISATIONS and now is None else ""
        logging.getLogger("glmft").warning(
            f"warning: {place.adapter}: was trained over {in_words(was)} and is put onto {in_words(now)}: answers may "
            f"differ{mend}"
        )


def in_words(quantisation: str | None) -> str:
    bits = {"4": "a base in 4 bits", "8": "a base in 8 bits", None: "a full-precision base"}
    return bits.get(quantisation, f"a base in {quantisation}")


def load(
    path: str | Path | None = None,
    *,
    mode: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    base_model_path: str | Path | None = None,
    prefix: str | Path | None = None,
    quantization_bit: str | int | None = None,
    attn_implementation: str = "sdpa",
    device_map: str | None = None,
) -> tuple[Any, Any]:
    """Model, in eval mode on its device, and tokenizer.

    What the adapter, or a model that was trained whole or merged, records of its training is `model.trained_with`,
    and `glmft.answer` goes by it.

    Args:
        path: folder of a base model in the official layout, of a merged model, or of an adapter; None: the embedded
            tiny base.
        mode: the family (`glm`, `glm2`, `glm3`, `glm4`), where the folder does not tell.
        dtype: `auto` (bf16 where the accelerator has it, fp32 on a CPU), `fp32`, `bf16` or `fp16`.
        base_model_path: an adapter's base model, if it has moved.
        prefix: a P-Tuning v2 checkpoint to put onto the base model: a folder or file with
            `transformer.prefix_encoder.*`, safetensors or the official `pytorch_model.bin`.
        quantization_bit: 8, 4 or `nf4`: how the weights of the layers are held; None: as the folder has them.
        device_map: `auto`: spread the layers over all accelerators; what does not fit stays on the host.

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

    _check_choices(mode, quantization_bit, device_map)
    require_attention(attn_implementation)
    chosen = choose_device(device, env_local_rank())
    number_format = choose_dtype(dtype, chosen)
    place = locate(path, base_model_path)
    config = load_config(place.base, place.mode(mode), None if quantization_bit is None else str(quantization_bit))
    if config.rope_line:
        logging.getLogger("glmft").warning(config.rope_line)
    warn_of_quantisation(place, config, "--quantization_bit")
    tokenizer = load_tokenizer(place.base, config.family, config)
    model = load_model(config, place.base, number_format, attn_implementation)
    model.trained_with = place.trained_with  # for `answer`; peft's wrappers show it too
    if place.adapter:
        model = load_adapter(model, place.adapter, place.train_type)
    if prefix is not None:
        from glmft.tuners.prefix import put_prefix

        put_prefix(model, Path(prefix))
    model = spread(model) if device_map == "auto" and chosen.type != "cpu" else model.to(chosen)
    return model.eval(), tokenizer


def _check_choices(mode: str | None, quantization_bit: str | int | None, device_map: str | None) -> None:
    chosen = {
        "mode": (mode, tuple(FAMILIES)),
        "quantization_bit": (quantization_bit, tuple(QUANTISATIONS)),
        "device_map": (device_map, ("auto",)),
    }
    for name, (value, known) in chosen.items():
        if value is not None and str(value) not in known:
            raise ConfigError(f"{name} {value!r}: is none of {', '.join(known)}{meant_value(name, str(value), known)}")


def spread(model: Any) -> Any:
    """The model with its layers on all accelerators, by accelerate; each runs where it lies, the rest by turns."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = model._no_split_modules
    memory = get_balanced_memory(model, no_split_module_classes=whole)
    places = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
    return dispatch_model(model, places, skip_keys=["past_key_values"])


def prefix_to_peft(path: str | Path, target: str | Path, base_model_path: str | Path | None = None) -> None:
    """Write a P-Tuning adapter in the form of peft's prefix tuning; `load` reads that form, too.

    Args:
        path: the adapter's folder.
        target: a folder that is not there yet.
        base_model_path: the adapter's base model, if it has moved.

    Raises:
        ConfigError: `target` is there.
        CheckpointError: no P-Tuning adapter, or of a family that peft's form cannot express.
    """
    from glmft.tuners.peft_prefix import write_peft_prefix

    if Path(target).exists():
        raise ConfigError(f"{target}: is there already; name another folder")
    model, _ = load(path, dtype="fp32", device="cpu", base_model_path=base_model_path)
    write_peft_prefix(model, Path(target))
