"""`glmft export`: hand a model or an adapter over to other programs, in the form that they know."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from glmft.commands.merge import located, merged_model
from glmft.commands.model_folder import (
    FREE_SPACE,
    Merged,
    check_target,
    require_room,
    size_of,
    write_merged,
)
from glmft.commands.quiet import quiet
from glmft.errors import ConfigError
from glmft.family import PEFT_JSON
from glmft.files import new_folder, refusals_as, write_json
from glmft.inference.loading import Place, prefix_to_peft
from glmft.reading import read_json
from glmft.settings.tools import ExportConfig

DOCUMENTS = ("*LICENSE*", "README*")


def export(config: ExportConfig, report: Callable[[str], Any] = print) -> Path:
    """Write a model or an adapter in another form and return the folder. The inputs stay as they are.

    Args:
        report: is told what was checked and what could not be carried over.

    Raises:
        ConfigError: the form cannot express it, or an output folder that holds something.
        CheckpointError: files that do not belong together, a full disk, or the check fails.
    """
    if config.model_name_or_path is None:
        raise ConfigError("name what to export: glmft export PATH --to transformers")
    places = located(config.model_name_or_path, config.base_model_path, "--base_model_path", "PATH")
    place = places[0][0]
    whole = place.adapter or place.base
    target = Path(config.output_dir) if config.output_dir else whole.with_name(f"{whole.name}-{config.to}")
    check_target(target, config.max_shard_size)
    quiet()
    if config.to == "official-ptuning":
        to_official_ptuning(place, config, target, report)
    elif config.to == "peft":
        to_peft(places, config, target, report)
    else:
        merged = prepared(places, config.mode)
        if config.to == "transformers":
            to_transformers(merged, config, target, report)
        else:
            report(write_merged(merged, target, config.max_shard_size, config.format, config.verify))
    return target


def prepared(places: list[tuple[Place, float]], mode: str | None) -> Merged:
    """A base as it is, or with what was trained in it."""
    from glmft.models.loading import check_folder, load_config
    from glmft.models.stored_layers import stored_model

    base = places[0][0].base
    if places[0][0].adapter is not None:
        return merged_model(places, mode)
    config = load_config(base, places[0][0].mode(mode))
    if config.quantisation:
        raise ConfigError(f"{base}: is quantised ({config.quantisation}); export the full-precision model")
    stored, model = check_folder(config, base)
    streams = [stored.stream(name) for name in stored]
    return Merged(model, base, streams, lambda: stored_model(deepcopy(config), stored), record=places[0][0].record)


def to_transformers(merged: Merged, config: ExportConfig, target: Path, report: Callable[[str], Any]) -> None:
    """transformers' own GlmForCausalLM with a fast tokenizer and a chat template: none of our code is needed."""
    from glmft.inference.verification import compare
    from glmft.models.loading import stored_dtype
    from glmft.models.to_native import native_config, native_streams
    from glmft.tokenizers.loading import load_tokenizer
    from glmft.tokenizers.to_fast import fast_tokenizer
    from glmft.weights import write_streams

    ours = merged.model.config
    if ours.model_type != "chatglm":
        raise ConfigError(f"{merged.base}: is in transformers' own layout already; glmft merge writes it whole")
    tokenizer = load_tokenizer(merged.base, ours.family)
    there = native_config(ours, tokenizer.stop_ids)
    there.dtype = stored_dtype(merged.base)
    streams, fast = native_streams(merged.streams, ours), fast_tokenizer(tokenizer)
    require_room(target, sum(stream.nbytes for stream in streams))
    with refusals_as(target, FREE_SPACE), new_folder(target) as aside:
        write_streams(streams, aside, size_of(config.max_shard_size), config.format)
        there.save_pretrained(aside)
        write_generation(merged, tokenizer, aside)
        save_fast(fast, aside)
        for pattern in DOCUMENTS:
            for path in merged.base.glob(pattern):
                shutil.copyfile(path, aside / path.name)
        if config.verify:
            report(compare(merged.reference(), aside, tokenizer, merged.rounded_to))
    report(f"not carried over: {not_carried(ours.family)}")


def save_fast(fast: Any, folder: Path) -> None:
    """Under the class name that transformers 4 knows, too."""
    fast.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    write_json(path, {**read_json(path), "tokenizer_class": "PreTrainedTokenizerFast"})


def not_carried(family: str) -> str:
    """What of a family's behaviour transformers' classes have no place for."""
    lines = ["in half precision its norms round once more, so that logits differ by a rounding"]
    if family != "glm4":
        lines.append(
            "its tokenizer reads special tokens that are written in a text; sop and eop are called <sop> and <eop>"
        )
    if family == "glm2":
        lines.append("spaces before punctuation stay when ids are decoded")
    return "; ".join(lines)


def write_generation(merged: Merged, tokenizer: Any, folder: Path) -> None:
    """generation_config.json: what the base's says, with all ids that end an answer."""
    from transformers import GenerationConfig

    there = (merged.base / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(merged.base) if there else merged.model.generation_config
    generation.eos_token_id, generation.pad_token_id = tokenizer.stop_ids, tokenizer.pad_token_id
    generation.bos_token_id = None
    generation.save_pretrained(folder)


# ---------------------------------------------------------------------------------------------------- adapters


def to_peft(
    places: list[tuple[Place, float]], config: ExportConfig, target: Path, report: Callable[[str], Any]
) -> None:
    """An adapter as plain peft reads it: LoRA on transformers' own layout of the base, or on the base's; a prefix."""
    from glmft.models.loading import load_config, meta_model
    from glmft.tuners.peft_config import adapter_file
    from glmft.tuners.split_lora import write_split

    place = places[0][0]
    if len(places) > 1 or places[0][1] != 1:
        raise ConfigError("--to peft: takes one adapter; merge several with --to official or transformers")
    if place.adapter is not None and place.train_type in ("ptuning", None):
        prefix_to_peft(place.adapter, target, place.base)
        return
    if place.adapter is None or place.train_type != "lora":
        raise ConfigError(f"{place.adapter or place.base}: peft has no form for it; take --to official or transformers")
    base = load_config(place.base, place.mode(config.mode))
    split = config.layout == "transformers" and base.model_type == "chatglm" and base.family != "glm"
    with refusals_as(target, FREE_SPACE), new_folder(target) as aside:
        if split:
            native = str(place.base.resolve().with_name(f"{place.base.resolve().name}-transformers"))
            names = write_split(meta_model(base), place.adapter, aside, native)
            report(f"on {', '.join(names)} of {native}, which glmft export {place.base} --to transformers writes")
        else:
            shutil.copyfile(place.adapter / PEFT_JSON, aside / PEFT_JSON)
            file = adapter_file(place.adapter)
            shutil.copyfile(file, aside / file.name)
            report(f"on the modules of {place.base}, as they are called there")


def to_official_ptuning(place: Place, config: ExportConfig, target: Path, report: Callable[[str], Any]) -> None:
    """What the official P-Tuning script leaves: config.json with `pre_seq_len`, and the prefix in pytorch_model.bin."""
    import torch

    from glmft.models.loading import load_config, meta_model
    from glmft.tuners.prefix import EMBEDDING, OFFICIAL_WEIGHTS, check_fit, flattened, read_prefix, shape_of

    if place.adapter is None or place.train_type not in ("ptuning", None):
        raise ConfigError(
            f"{place.adapter or place.base}: holds no P-Tuning prefix; --to official-ptuning is for those"
        )
    base = load_config(place.base, place.mode(config.mode))
    model = meta_model(base)
    state = read_prefix(place.adapter, model)
    check_fit(model, state, place.adapter)
    length, projected, hidden_size = shape_of(state)
    if projected and hidden_size != base.hidden_size:
        state, projected = {EMBEDDING: flattened(model, state, place.adapter)}, False
        report(f"its projection of width {hidden_size}, which the official code cannot have, is computed into it")
    base.pre_seq_len, base.prefix_projection, base.prefix_hidden_size = length, projected, None
    with refusals_as(target, FREE_SPACE), new_folder(target) as aside:
        torch.save({f"transformer.{name}": tensor.clone() for name, tensor in state.items()}, aside / OFFICIAL_WEIGHTS)
        if base.model_type == "chatglm":
            base.save_pretrained(aside)
    report(f"{length} virtual tokens, {'projected' if projected else 'not projected'}")
