"""A model cut into stages, each with some of its layers: the same modules, of which a rank has the values of its own.

What other stages have stays in the model by name and shape, as zeros that take no memory, and hidden states pass it as
they are. So a stage runs the model's own forward pass, and an adapter is put onto every stage in the same way.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmft.device import giving_back_freed_memory
from glmft.dist import World
from glmft.elsewhere import Home, weightless
from glmft.models.loading import check_folder, model_class
from glmft.models.quantised import quantised_layers
from glmft.models.stored import is_of_prefix, require_finite, tie_as_officially, tied_names
from glmft.models.streaming import empty_model, integers, other_buffers

# A module that peft trains whole is there twice, in one place.
PEFTS_COPY = re.compile(r"\b(original_module|modules_to_save(\.default)?)\.")


@dataclass
class Cut:
    """Which stage has which layers, and what of virtual tokens passes between them.

    The first stage has the embedding, too, the last one the final norm and the head.

    Args:
        layers: of each stage, how many.
        stage: this rank's.
        virtual: hidden states of virtual tokens [1, P, h]: as they came, and then as they go on.
    """

    layers: tuple[int, ...]
    stage: int
    virtual: Tensor | None = field(default=None, compare=False)

    @property
    def last(self) -> int:
        return len(self.layers) - 1

    def stage_of(self, layer: int) -> int:
        """The stage that has a layer."""
        return next(stage for stage, end in enumerate(accumulate(self.layers)) if layer < end)


def language_model(model: nn.Module) -> Any:
    """The model of this package inside of what peft may have put around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def stages_of(model: nn.Module, cut: Cut) -> dict[str, set[int]]:
    """The stages that have each parameter and each buffer, by all of its names.

    Two of them share an embedding that is the head, all of them what gives virtual tokens to every layer.
    """
    core = language_model(model)
    base = core.base_model
    units = [(core.get_input_embeddings(), 0), (base.last_norm, cut.last), (core.get_output_embeddings(), cut.last)]
    units += [(block, cut.stage_of(i)) for i, block in enumerate(base.blocks)]
    units += [(base.prompt_encoder, 0)] if core.config.prompt_seq_len else []
    of_tensor: dict[int, set[int]] = defaultdict(set)
    for module, stage in units:
        for tensor in (*module.parameters(), *module.buffers()):
            of_tensor[id(tensor)].add(stage)
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    of_place: dict[str, set[int]] = defaultdict(set)
    for name, tensor in named:
        of_place[PEFTS_COPY.sub("", name)] |= of_tensor[id(tensor)]
    everywhere = set(range(len(cut.layers)))
    return {name: of_tensor[id(t)] or of_place[PEFTS_COPY.sub("", name)] or everywhere for name, t in named}


@giving_back_freed_memory()
def load_stage(
    config: Any,
    folder: str | Path,
    cut: Cut,
    dtype: torch.dtype,
    trains: Callable[[list[str]], set[str]],
    attn_implementation: str = "sdpa",
) -> nn.Module:
    """The model with the weights of this rank's stage: no others are read.

    Args:
        trains: of all parameter names, those that will be trained; they get float32.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped tensors, or an unreadable file; one line each.
    """
    folder = Path(folder)
    stored, _ = check_folder(config, folder)
    model = empty_model(model_class(config), config, attn_implementation)
    if config.pre_seq_len and not any(is_of_prefix(name) for name in stored):
        model.base_model.add_prefix_encoder()
    model.tie_weights()
    stages, tied = stages_of(model, cut), tied_names(model)
    chosen = trains([name for name, _ in model.named_parameters(remove_duplicate=False)])
    here = []
    for prefix, module in model.named_modules():
        for name in [name for name, p in module._parameters.items() if p is not None]:
            full = f"{prefix}.{name}"
            if full in tied or full not in stored:
                continue
            kind, shape = torch.float32 if full in chosen else dtype, module._parameters[name].shape
            if cut.stage in stages[full]:
                value = stored[full].to(dtype, copy=True).to(kind)
                here.append((full, value))
            else:
                value = weightless(shape, kind)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
    for name, buffer in other_buffers(model):
        buffer.copy_(stored.get(name, buffer))
    for name, layer in quantised_layers(model):
        if cut.stage in stages[f"{name}.weight"]:
            layer.take(*integers(layer, name, stored))
            here.append((f"{name}.weight_scale", layer.weight_scale))
        else:
            layer.take(*(weightless(t.shape, t.dtype) for t in (layer.weight, layer.weight_scale)))
    require_finite(here, folder)
    model.tie_weights()
    if cut.stage == 0:  # others do not read the embedding
        tie_as_officially(model, folder, stored)
    return model.eval()


def settle(model: nn.Module, cut: Cut, world: World) -> None:
    """Leave a tuned model what this rank's stage has of it, and have hidden states pass the rest."""
    stages = stages_of(model, cut)
    for name, parameter in model.named_parameters():
        if len(stages[name]) < len(cut.layers):
            here = cut.stage in stages[name]
            parameter.home = Home(min(stages[name]) * world.data_size, here, world.host_group)
            if not here:
                parameter.data = weightless(parameter.shape, parameter.dtype)
    base = language_model(model).base_model
    for i, block in enumerate(base.blocks):
        if cut.stage_of(i) != cut.stage:
            block.gradient_checkpointing = False
            block.forward = passing(i, base.config, cut)
    if cut.stage != cut.last:
        base.last_norm.forward = lambda hidden: hidden
    if base.config.prompt_seq_len and cut.stage:
        base.prompt_encoder.forward = lambda: cut.virtual[0]


def passing(layer: int, config: Any, cut: Cut) -> Callable[..., Tensor]:
    """What stands for a layer of another stage. Virtual tokens, which come with a cache, leave it zeros."""
    is_next = cut.stage_of(layer) > cut.stage and (layer == 0 or cut.stage_of(layer - 1) == cut.stage)

    def unchanged(hidden: Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Tensor:
        if past_key_values is not None:
            _, heads, size = config.key_value_shape
            nothing = hidden.new_zeros(1, heads, hidden.shape[1], size)
            past_key_values.update(nothing, nothing, layer)
            if is_next:
                cut.virtual = hidden
        return hidden

    return unchanged


def shared_parameters(model: nn.Module, cut: Cut) -> list[tuple[nn.Parameter, tuple[int, ...]]]:
    """What trains on several stages, with those that have it; the same list on every rank."""
    stages = stages_of(model, cut)
    trained = [(p, tuple(sorted(stages[name]))) for name, p in model.named_parameters() if p.requires_grad]
    return [(p, of_stages) for p, of_stages in trained if len(of_stages) > 1]


def first_trained(model: nn.Module, cut: Cut) -> int:
    """The first stage on which something trains."""
    stages = stages_of(model, cut)
    return min(min(stages[name]) for name, parameter in model.named_parameters() if parameter.requires_grad)
