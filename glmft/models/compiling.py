"""torch.compile of the parts of a layer on both sides of its attention, for training.

A layer is no single graph: attention goes through a row document by document, by lengths that the host knows, and each
new set of them would be compiled anew. What lies around it takes a row of any length. All layers share one code: it is
compiled once, for lengths that change.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from glmft.errors import ConfigError, one_line

NORMS = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")


def compile_layers(model: nn.Module) -> None:
    """Compile what lies around the attention of each layer, when it first runs; used while the layer trains.

    Args:
        model: one of transformers', or peft's around it.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            for module, name in parts_of(layer):
                setattr(module, name, in_training(module, getattr(module, name)))


def parts_of(layer: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules and names of their methods: those of our layers, or what transformers' have for modules."""
    if hasattr(layer, "fed_forward"):
        attention = layer.attention if hasattr(layer, "attention") else layer.self_attention
        return [(layer.input_layernorm, "forward"), (attention, "projected"), (layer, "fed_forward")]
    norms = [getattr(layer, name) for name in NORMS if hasattr(layer, name)]
    return [(module, "forward") for module in (*norms, layer.mlp)]


def in_training(module: nn.Module, method: Callable) -> Callable:
    """The method, compiled while the module trains: answers are made of single tokens and many shapes.

    It raises ConfigError if it cannot be compiled.
    """
    compiled = torch.compile(method, dynamic=True)

    @functools.wraps(method)
    def run(*args: Any) -> Any:
        if not module.training:
            return method(*args)
        try:
            return compiled(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = one_line(error, 200)
            raise ConfigError(f"--torch_compile: a layer cannot be compiled ({reason}); leave it out") from None

    return run


def require_compiler(device: torch.device) -> None:
    """Raises ConfigError if what torch.compile makes for a device cannot be built here."""
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=True)(torch.ones(4, device=device))
    except Exception as error:  # of the compiler, of torch, of triton
        needed = "g++" if device.type == "cpu" else "triton and a C compiler"
        raise ConfigError(
            f"--torch_compile: nothing can be compiled here ({one_line(error, 200)}); install {needed}, or leave it out"
        ) from None
