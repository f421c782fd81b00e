"""How long a layer takes on this machine, to cut a model into stages that take equally long."""

import copy
import time
from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from glmft.dist import World
from glmft.models.loading import model_class
from glmft.models.quantised import quantised_layers
from glmft.settings.modules import layer_numbers, lowest_layer
from glmft.training.job import Batch, summed_loss

ROUNDS = 5  # of which the fastest counts


@dataclass(frozen=True)
class Seconds:
    """
    Args:
        forward: without a gradient.
        frozen: forward, and backward to what comes in.
        trained: forward, and backward to the weights too.
    """

    forward: float
    frozen: float
    trained: float


def layer_times(config: Any, batch: Batch, world: World) -> tuple[Seconds, float]:
    """Of one layer, and seconds of the final norm, the head and the loss: from models of one and of two layers.

    Args:
        config: the model's.
        batch: a micro-batch on this rank's device.
    """
    one, two = (measured(config, layers, batch, world) for layers in (1, 2))
    forward, frozen, trained = accumulate((max(0.0, b - a) for a, b in zip(one, two, strict=True)), max)
    return Seconds(forward, frozen, trained), max(0.0, one[1] - frozen)


def measured(config: Any, layers: int, batch: Batch, world: World) -> list[float]:
    """Seconds of a model of so many layers with random weights, as `Seconds` has them."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        model = model_class(config)._from_config(config, dtype=world.dtype).to(world.device).train()
    for _, layer in quantised_layers(model):
        layer.take(torch.zeros_like(layer.weight), torch.zeros_like(layer.weight_scale))
    embedding = model.get_input_embeddings()
    inputs = {key: value for key, value in batch.items() if key != "input_ids"}
    inputs["inputs_embeds"] = embedding(batch["input_ids"]).detach()
    return [fastest(model, inputs, world, kind) for kind in ("forward", "frozen", "trained")]


def fastest(model: nn.Module, inputs: Batch, world: World, kind: str) -> float:
    """Seconds of the fastest round after a first one."""
    for parameter in model.parameters():
        parameter.requires_grad_(kind == "trained" and parameter.is_floating_point())
    inputs = {**inputs, "inputs_embeds": inputs["inputs_embeds"].clone().requires_grad_(kind != "forward")}
    seconds = []
    for _ in range(1 + ROUNDS):
        begins = time.perf_counter()
        with torch.set_grad_enabled(kind != "forward"):
            loss = summed_loss(model, inputs, world)
        if kind != "forward":
            loss.backward()
        loss.item()  # waits for an accelerator
        seconds.append(time.perf_counter() - begins)
        model.zero_grad(set_to_none=True)
    return min(seconds[1:])


def weights_by_time(
    layer: Seconds, head: float, layers: int, trained: Collection[str], recomputes: bool
) -> tuple[list[float], float, float]:
    """Seconds, for `partition.balanced`: of each layer, of the embedding, and of the norm and the head.

    Args:
        trained: names of what trains; the layers below all of it have no backward pass.
        recomputes: whether the backward pass begins with a forward pass.
    """
    first = lowest_layer(list(trained), layers)
    of_base = layer_numbers([name for name in trained if "lora_" not in name])
    seconds = []
    for i in range(layers):
        with_gradient = (layer.trained if i in of_base else layer.frozen) + layer.forward * recomputes
        seconds.append(with_gradient if i >= first else layer.forward)
    return seconds, 0.0, head
