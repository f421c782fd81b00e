"""Gradient checkpointing (Chen et al., 2016) of all layers, or of every so many-th."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_layers(model: nn.Module, every: int, use_reentrant: bool = False) -> None:
    """Have layers keep their input alone, and compute the rest again in the backward pass.

    Args:
        model: one of transformers', or peft's around it.
        every: 0: no layer; 1: all; N: the first of every N.
        use_reentrant: the older kind, which gives no gradient through inputs that need none: the embeddings then need
            one. With the other kind they do not, and nothing below the lowest trained layer is computed again.
    """
    if not every:
        return
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for i, layer in enumerate(layers):
        layer.gradient_checkpointing = i % every == 0
    if use_reentrant:
        model.enable_input_require_grads()
    else:
        model.disable_input_require_grads()
