"""Whether a written model computes what it was made of: logits of both on fixed texts, with weights read when used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmft.errors import CheckpointError
from glmft.models.loading import check_folder, load_config
from glmft.models.stored_layers import stored_model
from glmft.tuners.base import load_checked
from glmft.tuners.merging import Part, lora_layers
from glmft.tuners.peft_config import adapter_file, lora_config, read_peft_config

TEXTS = ("请用一句话介绍你自己。", "What is 17 * 23? Answer with the number alone.\n")
# A weight that is rounded once moves a logit by a few roundings of its format; float32 has noise of its own.
ROUNDINGS, NOISE = 8, 1e-4


def bound_of(dtype: torch.dtype | None) -> float:
    """How far apart logits may be, over the largest of them, where the weights were rounded once to a format."""
    return (ROUNDINGS * torch.finfo(dtype).eps if dtype else 0) + NOISE


@torch.no_grad()
def compare(reference: nn.Module, folder: Path, tokenizer: Any, dtype: torch.dtype | None) -> str:
    """A line on how far the logits of a written folder are from those of a model, on fixed texts in float32.

    Args:
        dtype: what the folder's weights were rounded to when they were made; None: they were there before.

    Raises:
        CheckpointError: farther than `bound_of` says.
    """
    config = load_config(folder)
    written = stored_model(config, check_folder(config, folder)[0])
    apart = largest = torch.zeros(())
    tokens = 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer.chat_ids([{"role": "user", "content": text}])])
        ids = ids.clamp(max=config.vocab_size - 1)
        expected = reference(input_ids=ids, use_cache=False).logits
        logits = written(input_ids=ids, use_cache=False).logits
        apart = torch.maximum(apart, (logits - expected).abs().max())
        largest = torch.maximum(largest, expected.abs().max())
        tokens += ids.shape[1]
    bound = bound_of(dtype) * float(largest)
    figures = f"logits over {tokens} tokens differ by at most {float(apart):.3g} (allowed {bound:.3g})"
    if not float(apart) <= bound:
        raise CheckpointError(f"{folder.name}: what was written computes something else: {figures}; nothing is kept")
    return figures


def adapted(config: Any, stored: Mapping[str, Tensor], parts: list[Part]) -> nn.Module:
    """The base with LoRA adapters on it as peft computes them, without merging. One, or several of plain LoRA."""
    from peft import get_peft_model, set_peft_model_state_dict

    given = [read_peft_config(part.folder) for part in parts]
    whole = [f".{name}." for described in given for name in described.get("modules_to_save") or []]
    model: Any = stored_model(config, stored, lambda name: any(part in f".{name}." for part in whole))
    for i, (part, described) in enumerate(zip(parts, given, strict=True)):
        if i:
            model.add_adapter(str(i), lora_config(described))
        else:
            model = get_peft_model(model, lora_config(described), adapter_name="0")
        set_peft_model_state_dict(model, load_checked(adapter_file(part.folder)), adapter_name=str(i))
    model.base_model.set_adapter([str(i) for i in range(len(parts))])
    for _, layer in lora_layers(model):
        for i, part in enumerate(parts):
            if str(i) in layer.scaling:
                layer.scaling[str(i)] *= part.share
    return model.eval()


def is_mixable_by_peft(part: Part) -> bool:
    """Whether peft adds this adapter to others exactly."""
    given = read_peft_config(part.folder)
    return not (given.get("use_dora") or given.get("modules_to_save") or given.get("bias", "none") != "none")
