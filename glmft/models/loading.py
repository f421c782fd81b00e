"""Load an official or saved model folder natively: family, shapes and files are checked, no remote code runs."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmft.errors import CheckpointError, ConfigError, one_line
from glmft.family import FAMILY_KEY, family_of_folder
from glmft.files import read_json
from glmft.models.chatglm import ChatGLM6BForConditionalGeneration
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
from glmft.models.configuration import ChatGLM2Config, ChatGLM6BConfig
from glmft.models.native import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM
from glmft.weights import open_weights, tensor_of

MODELS = {
    "glm": (ChatGLM6BConfig, ChatGLM6BForConditionalGeneration),
    "glm2": (ChatGLM2Config, ChatGLM2ForConditionalGeneration),
    "glm3": (ChatGLM2Config, ChatGLM2ForConditionalGeneration),
    "glm4": (ChatGLM2Config, ChatGLM2ForConditionalGeneration),
}
# By the model type, in transformers' own layout.
NATIVE = {"glm": (GlmConfig, GlmForCausalLM), "glm4": (Glm4Config, Glm4ForCausalLM)}
EMBEDDINGS = (
    "transformer.embedding.word_embeddings.weight",
    "transformer.word_embeddings.weight",
    "model.embed_tokens.weight",
)
OTHER_GLM = {
    "glm4_moe": "GLM-4.5, a mixture of experts",
    "glm4_moe_lite": "GLM-4.7-Flash, a mixture of experts",
    "glm_moe_dsa": "GLM-5, a mixture of experts",
    "glm4v": "GLM-4.1V, a model of images and text",
    "glm4v_moe": "GLM-4.5V, a model of images and text",
    "glm46v": "GLM-4.6V, a model of images and text",
    "glm_image": "GLM-Image, a model of images",
    "glm_ocr": "GLM-OCR, a model of images and text",
    "glmasr": "GLM-ASR, a model of speech",
}
# In the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def load_config(folder: str | Path, mode: str | None = None) -> Any:
    """The configuration of a model folder, with its family in it.

    Raises:
        ConfigError: config.json is missing or of another model, or contradicts `mode`.
    """
    folder = Path(folder)
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind != "chatglm" and not (isinstance(kind, str) and kind in NATIVE):
        raise ConfigError(f"{folder / 'config.json'}: " + unknown_model(kind))
    family = family_of_folder(folder, mode)
    try:
        if kind in NATIVE:
            config = NATIVE[kind][0].from_dict(raw)
        else:
            config = MODELS[family][0].from_dict({**raw, FAMILY_KEY: family})
    except ConfigError:
        raise
    except Exception as error:  # whatever a value of a wrong type makes transformers raise
        raise ConfigError(f"{folder / 'config.json'}: {one_line(error)}") from None
    config.name_or_path = str(folder)
    return config


def unknown_model(kind: Any) -> str:
    """Why a model type is refused; GLM's others by name."""
    known = f"chatglm, {', '.join(NATIVE)}"
    if isinstance(kind, str) and kind in OTHER_GLM:
        return f"holds {OTHER_GLM[kind]} (model_type {kind}); glmft trains the dense text models ({known})"
    return f"model_type is {kind!r}, none of {known}"


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
    name = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        raise CheckpointError(f"{folder}: holds no weights (looked for {', '.join(WEIGHTS)})")
    if not name.endswith(".index.json"):
        return [folder / name]
    index = read_json(folder / name).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{folder / name}: has no weight_map; copy it again")
    files = [folder / shard for shard in sorted(set(index.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{folder}: {', '.join(missing)} of {name} is missing; copy it into the folder")
    return files


def load_model(config: Any, folder: str | Path, dtype: torch.dtype, attn_implementation: str = "sdpa") -> nn.Module:
    """The model with its weights, on the CPU.

    Args:
        config: what `load_config` gave, perhaps with a prefix set.
        dtype: number format of all weights.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped tensors, or an unreadable file; one line each.
    """
    folder = Path(folder)
    files = weight_files(folder)
    try:
        model, report = model_class(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            ignore_mismatched_sizes=True,  # they are reported, with names, below
            output_loading_info=True,
        )
    except CheckpointError:
        raise
    except Exception as error:  # whatever a torn file makes the readers raise
        for file in files:
            open_weights(file)  # names the broken one
        raise CheckpointError(f"{folder}: the weights cannot be loaded ({one_line(error)})") from None
    prefix = {name for name in report["missing_keys"] if "prefix_encoder" in name}
    if config.pre_seq_len and not prefix and set(EMBEDDINGS) & set(report["missing_keys"]):
        raise CheckpointError(
            f"{folder}: holds a P-Tuning prefix and no model; name its base with --model_name_or_path, and this folder "
            "with --ptuning_checkpoint"
        )
    misshapen = [f"{one_line(m)} has another shape than config.json says" for m in report["mismatched_keys"]]
    require_fit(folder, set(report["missing_keys"]) - prefix, report["unexpected_keys"], misshapen)
    return model


def require_fit(folder: Path, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]) -> None:
    """Raises CheckpointError if any tensor does not fit the model: the first five, and how many more there are.

    Args:
        misshapen: what is wrong with each tensor of another shape.
    """
    problems = [f"{folder}: {name} is missing from the weights" for name in sorted(missing)]
    problems += [f"{folder}: {name} belongs to no part of the model" for name in sorted(unexpected)]
    problems += [f"{folder}: {problem}" for problem in misshapen]
    if problems:
        raise CheckpointError(problems[:5] + ([f"{folder}: and {len(problems) - 5} more"] if problems[5:] else []))


def read_tensors(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a folder as its files hold them, in their own dtype; names that are not there are left out."""
    wanted, tensors = set(names), {}
    for file in weight_files(folder):
        stored = open_weights(file)
        tensors |= {name: tensor_of(stored, name) for name in wanted & set(stored.keys())}
    return tensors


def stored_dtype(folder: Path) -> torch.dtype:
    """The number format of a folder's weights, as its embedding has it."""
    return next(iter(read_tensors(folder, EMBEDDINGS).values())).dtype


def fingerprint(folder: str | Path) -> str:
    """A short hash over what makes a base model itself: its shape and a fixed sample of its numbers.

    The same for .bin and .safetensors files of the same weights, wherever the folder lies.
    """
    folder = Path(folder)
    raw = read_json(folder / "config.json")
    shape = {key: raw.get(key) for key in ("hidden_size", "num_layers", "num_attention_heads", "padded_vocab_size")}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    last = (raw.get("num_layers") or raw.get("num_hidden_layers") or 1) - 1
    names = [
        *EMBEDDINGS,
        "transformer.encoder.layers.0.self_attention.query_key_value.weight",
        f"transformer.encoder.layers.{last}.mlp.dense_4h_to_h.weight",
        "transformer.layers.0.attention.query_key_value.weight",
        f"transformer.layers.{last}.mlp.dense_4h_to_h.weight",
        "model.layers.0.self_attn.q_proj.weight",
        f"model.layers.{last}.mlp.down_proj.weight",
    ]
    for name, tensor in sorted(read_tensors(folder, names).items()):
        digest.update(name.encode())
        digest.update(tensor[-1, :256].float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def copy_texts(base: Path, target: Path) -> None:
    """Copy what an official folder holds beside weights, config and tokenizer: its code, licences, generation config.

    Nothing in `target` is overwritten. The code is never run here; with it the folder loads in the official way too.
    """
    for pattern in ("*.py", "*LICENSE*", "generation_config.json", "README*"):
        for path in base.glob(pattern):
            if path.is_file() and not (target / path.name).exists():
                shutil.copyfile(path, target / path.name)
