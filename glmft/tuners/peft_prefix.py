"""A P-Tuning v2 prefix in the form of peft's prefix tuning, and back.

The numbers are the same, but peft's prefix takes the first positions: the text begins behind it, while it begins at 0
beside ours. Rotary scores hang on distances alone, so keys turned by the prefix's length give the same answers there.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from glmft.errors import CheckpointError
from glmft.family import PEFT_JSON
from glmft.files import new_folder
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration, apply_rotary
from glmft.reading import read_json_if_there
from glmft.tuners.base import load_checked
from glmft.tuners.peft_config import PEFT_WEIGHTS, adapter_file, write_peft_config

TENSOR = "prompt_embeddings"


def is_peft_prefix(folder: Path) -> bool:
    """Whether a folder is peft's of a prefix."""
    return read_json_if_there(folder / PEFT_JSON).get("peft_type") == "PREFIX_TUNING"


def read_base(folder: Path) -> dict[str, str]:
    """Where such a folder says that its base model lies, if it says so in a text."""
    recorded = read_json_if_there(folder / PEFT_JSON).get("base_model_name_or_path")
    return {"base_model_name_or_path": recorded} if isinstance(recorded, str) else {}


def write_peft_prefix(model: nn.Module, folder: Path) -> None:
    """Write the prefix of a model as peft would, a projected one as what its projection gives.

    Raises:
        CheckpointError: the model has no prefix, or is one whose positions peft cannot count.
    """
    from peft import PrefixTuningConfig

    if not model.config.pre_seq_len:
        raise CheckpointError(f"{folder}: the model has no P-Tuning prefix to write")
    with torch.no_grad():
        prefix = model.base_model.prefix_encoder().float().cpu()
    layers, groups, size = model.config.key_value_shape
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=model.config.pre_seq_len,
        num_layers=layers,
        num_attention_heads=groups,
        token_dim=groups * size,
        base_model_name_or_path=model.config.name_or_path or None,
        inference_mode=True,
    )
    rows = turned(model, prefix, 1).permute(3, 0, 1, 2, 4).flatten(1)
    with new_folder(folder) as aside:
        save_file({TENSOR: rows.contiguous()}, aside / PEFT_WEIGHTS, metadata={"format": "pt"})
        write_peft_config(config, aside)


def read_peft_prefix(model: nn.Module, folder: Path) -> Tensor:
    """The embedding [P, 2 layers groups d] of a prefix without projection that peft wrote for a model like this.

    Raises:
        CheckpointError: the weights are missing or torn, or of another shape.
    """
    file = adapter_file(folder)
    rows = load_checked(file).get(TENSOR)
    layers, groups, size = model.config.key_value_shape
    if rows is None or rows.dim() != 2 or rows.shape[1] != 2 * layers * groups * size:
        raise CheckpointError(
            f"{file}: holds no {TENSOR} of width {2 * layers * groups * size}; name the prefix's base"
        )
    prefix = rows.float().view(-1, layers, 2, groups, size).permute(1, 2, 3, 0, 4)
    return turned(model, prefix, -1).permute(3, 0, 1, 2, 4).flatten(1).contiguous()


def turned(model: nn.Module, prefix: Tensor, direction: int) -> Tensor:
    """A prefix [layers, 2, groups, P, d] whose keys are turned by P positions, forward or back."""
    if not isinstance(model, ChatGLM2ForConditionalGeneration):
        raise CheckpointError(
            "peft's prefix form counts positions in one dimension behind the prefix; glmft converts it for ChatGLM2, "
            "ChatGLM3 and GLM-4 in the official layout"
        )
    places = torch.full((1, 1), prefix.shape[3])
    cos, sin = model.base_model.rotary_pos_emb(places, torch.float32)
    keys = apply_rotary(prefix[:, 0], cos, direction * sin)
    return torch.stack((keys, prefix[:, 1]), dim=1)
