"""How many layers each stage of a pipeline gets."""

from collections.abc import Sequence
from functools import cache

from torch import nn

from glmft.errors import ConfigError
from glmft.models.stages import Cut, language_model


def by_hand(partition: str, layers: int, stages: int) -> tuple[int, ...]:
    """The numbers of `10,9,9`. Raises ConfigError if a stage would be empty, or they are not all of the layers."""
    counts = tuple(int(count) for count in partition.split(","))
    place = f"--pipeline_partition {partition}"
    if len(counts) != stages:
        raise ConfigError(f"{place}: has {len(counts)} parts, --pipeline_stages is {stages}; give one for each stage")
    if 0 in counts:
        raise ConfigError(f"{place}: stage {counts.index(0) + 1} would have no layer; give each at least one")
    if sum(counts) != layers:
        raise ConfigError(f"{place}: makes up {sum(counts)} layers, the model has {layers}")
    return counts


def balanced(layers: Sequence[float], before: float, behind: float, stages: int) -> tuple[int, ...]:
    """How many layers each stage gets, so that the heaviest stage is as light as can be, and of those cuts the one
    whose squares sum up to least.

    Args:
        layers: what each weighs.
        before, behind: what the embedding weighs on the first stage, and the norm and head on the last.
    """

    @cache
    def best(first: int, stage: int) -> tuple[float, float, tuple[int, ...]]:
        """Of the layers from `first` on, over the stages from `stage` on: the heaviest, the squares, and the cut."""
        extra = before * (stage == 0) + behind * (stage == stages - 1)
        left = len(layers) - first
        if stage == stages - 1:
            weight = extra + sum(layers[first:])
            return weight, weight * weight, (left,)
        ways = []
        for count in range(1, left - (stages - stage - 1) + 1):
            weight = extra + sum(layers[first : first + count])
            heaviest, squares, cut = best(first + count, stage + 1)
            ways.append((max(weight, heaviest), weight * weight + squares, (count, *cut)))
        return min(ways)

    return best(0, 0)[2]


def weights_by_parameters(model: nn.Module) -> tuple[list[float], float, float]:
    """Numbers of parameters, for `balanced`: of each layer, of the embedding, and of the norm and the head."""
    core = language_model(model)
    base = core.base_model
    count = lambda *modules: float(sum(p.numel() for m in modules for p in m.parameters()))  # noqa: E731
    layers = [count(block) for block in base.blocks]
    return layers, count(core.get_input_embeddings()), count(base.last_norm, core.get_output_embeddings())


def require_stages(layers: int, stages: int) -> None:
    """Raises ConfigError if a stage would have no layer."""
    if stages > layers:
        raise ConfigError(f"--pipeline_stages {stages}: the model has {layers} layers, so a stage would have none")


def stage_lines(cut: Cut, model: nn.Module, micro_batches: int, shares: int) -> list[str]:
    """What each stage holds, and the share of time in which it waits.

    Args:
        micro_batches: of one optimizer step and one share of the data.
        shares: of the data; a stage is on as many ranks.
    """
    layers, before, behind = weights_by_parameters(model)
    lines, first, stages = [], 0, len(cut.layers)
    for stage, count in enumerate(cut.layers):
        end = first + count
        parts = ["the embedding"] * (stage == 0) + [f"layers {first} to {end - 1}" if count > 1 else f"layer {first}"]
        parts += ["the final norm and the head"] * (stage == cut.last)
        numbers = sum(layers[first:end]) + before * (stage == 0) + behind * (stage == cut.last)
        ranks = f"ranks {stage * shares} to {stage * shares + shares - 1}" if shares > 1 else f"rank {stage}"
        lines.append(f"  stage {stage + 1} of {stages} ({ranks}): {', '.join(parts)}; {int(numbers):,} parameters")
        first = end
    bubble = (stages - 1) / (micro_batches + stages - 1)
    batches = f"{micro_batches} micro-batch{'es' * (micro_batches > 1)}"
    waits = (
        f"  with {batches} in a step each stage waits {100 * bubble:.1f}% of the time, (p - 1) / (m + p - 1), which is "
        "called the bubble; more --gradient_accumulation_steps make it less"
    )
    return ["the pipeline:", *lines, waits]
