"""`glmft merge`: make one servable model folder of a base and what was trained on it, which then needs no adapter."""

from collections import ChainMap
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from glmft.commands.model_folder import Merged, check_target, write_merged
from glmft.commands.quiet import quiet
from glmft.errors import CheckpointError, ConfigError
from glmft.inference.loading import Place, locate, warn_of_quantisation
from glmft.settings.sources import LARGEST_WEIGHT, split_weight
from glmft.settings.tools import MergeConfig

NO_PROMPT = (
    "holds a prompt: embeddings in front of the text, which no official model has a place for (its pre_seq_len means "
    "keys and values of every layer); answer with glmft predict or glmft.load, or train ptuning"
)


def merge(config: MergeConfig, report: Callable[[str], Any] = print) -> Path:
    """Write the merged model and return its folder. The inputs stay as they are.

    Args:
        report: is told what the check of the written model came to.

    Raises:
        ConfigError: nothing that can be merged, no base, or an output folder that holds something.
        CheckpointError: an adapter does not fit the base, the disk is full, or the check fails.
    """
    if config.model_dir is None:
        raise ConfigError("--model_dir: name the folder of what was trained")
    places = located(config.model_dir, config.ori_model_dir)
    target = Path(config.output_dir) if config.output_dir else (places[0][0].adapter or places[0][0].base) / "merged"
    check_target(target, config.max_shard_size)
    quiet()
    merged = merged_model(places, config.mode, config.ori_model_dir)
    report(write_merged(merged, target, config.max_shard_size, config.format, config.verify))
    return target


def located(
    text: str, base: str | None, base_flag: str = "--ori_model_dir", flag: str = "--model_dir"
) -> list[tuple[Place, float]]:
    """The adapters, or the whole model, that `a`, or `a:0.7,b:0.3`, names, with their shares.

    Args:
        base_flag, flag: what names base and adapters on the command line.

    Raises:
        ConfigError: no such folder, no base, or a kind of adapter that does not go into a model.
    """
    parts = [text] if Path(text).exists() else [part.strip() for part in text.split(",") if part.strip()]
    places: list[tuple[Place, float]] = []
    for part in parts:
        name, share = split_weight(part)
        if share is not None and not 0 < abs(share) <= LARGEST_WEIGHT:
            raise ConfigError(f"{flag} {part}: the weight must be a number other than 0")
        place = locate(name, base if base or not places else places[0][0].base, base_flag)
        places.append((place, 1.0 if share is None else share))
    several = len(places) > 1 or places[0][1] != 1
    for (place, _), part in zip(places, parts, strict=True):
        if several and (place.adapter is None or place.train_type != "lora"):
            raise ConfigError(f"{flag} {part}: holds no LoRA adapter; weights and several adapters are for LoRA")
        if place.train_type == "prompt":
            raise ConfigError(f"{flag} {part}: {NO_PROMPT}")
    return places


def merged_model(places: list[tuple[Place, float]], mode: str | None, ori_model_dir: str | None = None) -> Merged:
    """What is to be written of located parts. Raises ConfigError, CheckpointError."""
    from glmft.models.loading import check_folder, load_config

    place = places[0][0]
    if place.adapter is None:
        return whole_model(place, mode, ori_model_dir)
    config = load_config(place.base, place.mode(mode))
    if config.quantisation:
        raise ConfigError(
            f"{place.base}: is quantised ({config.quantisation}), so that what is merged would be rounded away; "
            "name the full-precision base with --ori_model_dir"
        )
    for other, _ in places:
        warn_of_quantisation(other, config)
    stored, model = check_folder(config, place.base)
    if place.train_type == "lora":
        merged = with_lora(model, place.base, stored, places)
    elif place.train_type == "freeze":
        merged = with_own_weights(model, place, stored)
    else:
        merged = with_prefix(model, place, stored)
    merged.record = place.record
    return merged


def with_lora(model: Any, base: Path, stored: Any, places: list[tuple[Place, float]]) -> Merged:
    from glmft.inference.verification import adapted, is_mixable_by_peft
    from glmft.models.stored_layers import stored_model
    from glmft.tuners.merging import Part, merged_streams
    from glmft.weights import Unwritten

    parts = [Part(place.adapter, "lora", share) for place, share in places]
    config = deepcopy(model.config)
    streams, parted = merged_streams(model, stored, parts)
    if parted:
        model.config.tie_word_embeddings = False
    alone = len(parts) == 1 and parts[0].share == 1

    def reference() -> Any:
        if alone or all(map(is_mixable_by_peft, parts)):
            return adapted(config, stored, parts)
        unrounded, _ = merged_streams(model, stored, parts, rounded=False)
        return stored_model(deepcopy(model.config), Unwritten(unrounded))

    return Merged(model, base, streams, reference, stored_format(stored))


def with_own_weights(model: Any, place: Place, stored: Any) -> Merged:
    """Of a freeze run: the base's own tensors, those that were trained in the place of the others."""
    from glmft.models.stored_layers import stored_model
    from glmft.tuners.base import ADAPTER_WEIGHTS
    from glmft.tuners.merging import Part, merged_streams
    from glmft.weights import StoredTensors

    config = deepcopy(model.config)
    streams, parted = merged_streams(model, stored, [Part(place.adapter, "freeze")])
    if parted:  # one matrix was trained, under one of its two names
        streams, _ = merged_streams(model, stored, [Part(place.adapter, "freeze")], follow_ties=True)
    trained = StoredTensors([place.adapter / ADAPTER_WEIGHTS])
    return Merged(
        model, place.base, streams, lambda: stored_model(config, ChainMap(trained, stored)), stored_format(stored)
    )


def with_prefix(model: Any, place: Place, stored: Any) -> Merged:
    """Of P-Tuning: the base and, announced by `pre_seq_len` in its config, the keys and values of the prefix."""
    from glmft.models.stored_layers import stored_model
    from glmft.tuners.prefix import EMBEDDING, flattened, put_prefix, read_prefix
    from glmft.weights import Stream

    if model.config.model_type != "chatglm":
        raise ConfigError(
            f"{place.base}: is in transformers' own layout, whose code knows no pre_seq_len; answer with glmft "
            "predict, or write the prefix with glmft export --to official-ptuning"
        )
    config = deepcopy(model.config)
    prefix = flattened(model, read_prefix(place.adapter, model), place.adapter)
    dtype = stored_format(stored)
    prefix = prefix.to(dtype)
    model.config.pre_seq_len, model.config.prefix_projection = len(prefix), False
    model.config.prefix_hidden_size = None
    name = f"{model.base_model_prefix}.{EMBEDDING}"
    streams = [*map(stored.stream, stored), Stream(name, tuple(prefix.shape), dtype, lambda: [prefix])]

    def reference() -> Any:
        tuned = stored_model(config, stored)
        put_prefix(tuned, place.adapter)
        return tuned.eval()

    return Merged(model, place.base, streams, reference, dtype)


def stored_format(stored: Any) -> Any:
    """The number format of a base's weights, as its embedding has it."""
    from glmft.models.stored import EMBEDDINGS

    return stored.stream(next(name for name in EMBEDDINGS if name in stored)).dtype


def whole_model(place: Place, mode: str | None, ori_model_dir: str | None) -> Merged:
    """Of a full run: its weights in its base's number format, with the base's other files. Raises ConfigError."""
    from glmft.models.loading import check_folder, load_config, stored_dtype
    from glmft.models.stored_layers import stored_model
    from glmft.tuners.merging import in_format

    folder = place.base
    if place.record.get("train_type") != "full":
        raise ConfigError(f"--model_dir {folder}: holds a whole model and no adapter, so there is nothing to merge")
    recorded = Path(ori_model_dir or place.record.get("base_model_name_or_path") or folder)
    base = recorded if (recorded / "config.json").is_file() else folder
    config = load_config(folder, place.mode(mode))
    if config.quantisation:
        raise CheckpointError(f"{folder}: is quantised, which no full run is")
    stored, model = check_folder(config, folder)
    dtype = stored_dtype(base)
    model.config.dtype = dtype
    streams = [in_format(stored.stream(name), dtype) for name in stored]
    return Merged(model, base, streams, lambda: stored_model(deepcopy(config), stored), dtype, place.record)
