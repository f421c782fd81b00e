"""Load an official or saved model folder natively: family, shapes and files are checked, no remote code runs."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmft.errors import CheckpointError, ConfigError, one_line
from glmft.family import FAMILY_KEY, PEFT_JSON, family_of_folder
from glmft.models.chatglm import ChatGLM6BForConditionalGeneration
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
from glmft.models.config_file import check_generation, read_config
from glmft.models.configuration import ChatGLM2Config, ChatGLM6BConfig
from glmft.models.native import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM
from glmft.models.nf4 import NF4, check_usable, for_transformers, keep_trainable
from glmft.models.stored import EMBEDDINGS, is_of_prefix, require_finite, require_fit, require_size, tie_as_officially
from glmft.models.streaming import empty_model, fill, require_tensors
from glmft.reading import is_file, read_json
from glmft.weights import StoredTensors, open_weights, tensor_of

MODELS = {
    "glm": (ChatGLM6BConfig, ChatGLM6BForConditionalGeneration),
    "glm2": (ChatGLM2Config, ChatGLM2ForConditionalGeneration),
    "glm3": (ChatGLM2Config, ChatGLM2ForConditionalGeneration),
    "glm4": (ChatGLM2Config, ChatGLM2ForConditionalGeneration),
}
# By the model type, in transformers' own layout.
NATIVE = {"glm": (GlmConfig, GlmForCausalLM), "glm4": (Glm4Config, Glm4ForCausalLM)}
# In the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def load_config(folder: str | Path, mode: str | None = None, quantization_bit: str | None = None) -> Any:
    """The configuration of a model folder, with its family in it.

    Args:
        quantization_bit: `4`, `8` or `nf4`: how the layers' weights shall be held. A folder that holds them in another
            way than floats has decided already.

    Raises:
        ConfigError: config.json is missing or of another model, or contradicts `mode` or `quantization_bit`.
    """
    folder = Path(folder)
    raw, others = read_config(folder)
    family, kind = family_of_folder(folder, mode), raw["model_type"]
    try:
        if kind in NATIVE:
            config = NATIVE[kind][0].from_dict(raw)
        else:
            config = MODELS[family][0].from_dict({**raw, FAMILY_KEY: family})
            config._recorded.update(others)  # written again with the model, and of no effect
    except ConfigError as error:
        raise ConfigError(f"{folder}/{problem}" for problem in error.problems) from None
    except Exception as error:  # whatever values that do not belong together make transformers raise
        raise ConfigError(f"{folder / 'config.json'}: {one_line(error)}") from None
    config.name_or_path = str(folder)
    stored = config.quantisation
    if quantization_bit and stored not in (None, quantization_bit):
        raise ConfigError(
            f"--quantization_bit {quantization_bit}: {folder} is quantised already ({stored}); leave the flag out, or "
            "name the full-precision base"
        )
    if quantization_bit == "nf4" and stored is None:
        config.quantization_config = dict(NF4)
    elif quantization_bit and stored is None:
        config.quantization_bit = int(quantization_bit)
    if getattr(config, "quantization_config", None):
        check_usable(config.quantization_config, "--quantization_bit nf4" if stored is None else str(folder))
    return config


def is_quantised(folder: str | Path) -> bool:
    """Whether a model folder's own files hold the layers' weights in another way than floats."""
    raw, _ = read_config(Path(folder))
    return bool(raw.get("quantization_bit") or raw.get("quantization_config"))


def model_class(config: Any) -> Any:
    """The class of the model that a configuration describes."""
    native = next((model for kind, model in NATIVE.values() if isinstance(config, kind)), None)
    return native or MODELS[config.family][1]


def meta_model(config: Any) -> nn.Module:
    """The model without memory behind its tensors: names and shapes only. Raises ConfigError if there can be none."""
    try:
        with torch.device("meta"):
            return model_class(config)(config)
    except ConfigError:
        raise
    except Exception as error:  # sizes that no model can have
        problem = f"describes no model that can be made ({type(error).__name__}: {one_line(error)})"
        raise ConfigError(f"{config.name_or_path}/config.json: {problem}") from None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, all of them there.

    Raises:
        CheckpointError: no weights, or a shard that the index names is missing.
    """
    name = next((name for name in WEIGHTS if is_file(folder / name)), None)
    if name is None:
        raise CheckpointError(f"{folder}: holds no weights (looked for {', '.join(WEIGHTS)})")
    if not name.endswith(".index.json"):
        return [folder / name]
    index = read_json(folder / name).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{folder / name}: has no weight_map; copy it again")
    strange = [shard for shard in index.values() if not is_weight_name(shard)]
    if strange:
        raise CheckpointError(f"{folder / name}: names {one_line(repr(strange[0]), 60)}, no weight file of this folder")
    files = [folder / shard for shard in sorted(set(index.values()))]
    missing = [file.name for file in files if not is_file(file)]
    if missing:
        raise CheckpointError(f"{folder}: {', '.join(missing)} of {name} is missing; copy it into the folder")
    return files


def is_weight_name(name: Any) -> bool:
    """Whether a name is that of a weight file in the same folder, and leads nowhere else."""
    return isinstance(name, str) and re.fullmatch(r"[\w.-]{1,200}\.(safetensors|bin)", name) is not None


def check_folder(config: Any, folder: str | Path) -> tuple[StoredTensors, nn.Module]:
    """The tensors of a model folder, after all has been compared with config.json that can be without reading them.

    Returns:
        They, and the model without memory behind its tensors.

    Raises:
        ConfigError, CheckpointError: what would not fit, one line each.
    """
    folder = Path(folder)
    check_generation(folder)
    if (folder / PEFT_JSON).exists():  # transformers would put the adapter onto the model, and believe all it says
        raise ConfigError(f"{folder}: holds a model and an adapter ({PEFT_JSON}); move the adapter to its own folder")
    stored = StoredTensors(weight_files(folder))
    require_size(config, stored, folder)
    model = meta_model(config)
    if not (config.uses_bitsandbytes and is_quantised(folder)):  # whose files hold what only bitsandbytes knows
        require_tensors(model, stored, folder)
    return stored, model


def load_model(config: Any, folder: str | Path, dtype: torch.dtype, attn_implementation: str = "sdpa") -> nn.Module:
    """The model with its weights, on the CPU.

    Args:
        config: what `load_config` gave, perhaps with a prefix set.
        dtype: number format of all weights.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped tensors, or an unreadable file; one line each.
    """
    folder = Path(folder)
    stored, _ = check_folder(config, folder)
    if config.quantization_bit:
        model = fill(empty_model(model_class(config), config, attn_implementation), stored, folder, dtype)
        require_finite([*model.named_parameters(), *model.named_buffers()], folder)
        return model
    try:
        taken, arguments = for_transformers(config, is_quantised(folder), dtype)
        model, report = model_class(config).from_pretrained(
            folder,
            config=taken,
            dtype=dtype,
            attn_implementation=attn_implementation,
            local_files_only=True,
            output_loading_info=True,
            **arguments,
        )
    except Exception as error:  # whatever a torn file makes the readers raise
        raise CheckpointError(f"{folder}: the weights cannot be loaded ({one_line(error)})") from None
    missing = {name for name in report["missing_keys"] if not is_of_prefix(name)}
    require_fit(folder, missing, report["unexpected_keys"], ())
    tie_as_officially(model, folder)
    require_finite([*model.named_parameters(), *model.named_buffers()], folder)
    keep_trainable(model)
    return model


def read_tensors(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a folder as its files hold them, in their own dtype; names that are not there are left out."""
    wanted, tensors = set(names), {}
    for file in weight_files(folder):
        stored = open_weights(file)
        tensors |= {name: tensor_of(stored, name) for name in wanted & set(stored.keys())}
    return tensors


def stored_dtype(folder: Path) -> torch.dtype:
    """The number format of a folder's weights, as its embedding has it."""
    embedding = next(iter(read_tensors(folder, EMBEDDINGS).values()), None)
    if embedding is None or not embedding.is_floating_point():
        raise CheckpointError(f"{folder}: holds no embedding of floating-point numbers; copy the model again")
    return embedding.dtype


def record_of(config: Any, folder: str | Path) -> dict[str, Any]:
    """What an adapter records of its base.

    Args:
        config: what `load_config` gave.
    """
    folder = Path(folder)
    return {
        "family": config.family,
        "base_model_name_or_path": str(folder.resolve()),
        "base_fingerprint": fingerprint(folder),
        "base_embedding": fingerprint(folder, embedding_only=True),
        "base_quantization": config.quantisation,
    }


def fingerprint(folder: str | Path, embedding_only: bool = False) -> str:
    """A short hash over what makes a base model itself: its shape and a fixed sample of its numbers.

    The same for .bin and .safetensors files of the same weights, wherever the folder lies.

    Args:
        embedding_only: of the numbers those of the embedding alone, which no quantisation changes.
    """
    folder = Path(folder)
    raw, _ = read_config(folder)
    shape = {key: raw.get(key) for key in ("hidden_size", "num_layers", "num_attention_heads", "padded_vocab_size")}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    last = (raw.get("num_layers") or raw.get("num_hidden_layers") or 1) - 1
    of_layers = [
        "transformer.encoder.layers.0.self_attention.query_key_value.weight",
        f"transformer.encoder.layers.{last}.mlp.dense_4h_to_h.weight",
        "transformer.layers.0.attention.query_key_value.weight",
        f"transformer.layers.{last}.mlp.dense_4h_to_h.weight",
        "model.layers.0.self_attn.q_proj.weight",
        f"model.layers.{last}.mlp.down_proj.weight",
    ]
    names = [*EMBEDDINGS, *([] if embedding_only else of_layers)]
    for name, tensor in sorted(read_tensors(folder, names).items()):
        digest.update(name.encode())
        if tensor.ndim != 2 or not tensor.numel() or tensor.is_complex():
            raise CheckpointError(f"{folder}: {name} is no matrix of real numbers; copy the model again")
        digest.update(tensor[-1, :256].float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
