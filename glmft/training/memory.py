"""Rough sums of a training run's memory, to say what would help when there is too little."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from glmft.dist import whole_shape
from glmft.models.quantised import bytes_of_integers
from glmft.settings.config import TrainConfig
from glmft.training.job import Job

GIB = 2**30
ADAM_BYTES = 8  # two moments in fp32
MASTER_BYTES = 4  # the copy in fp32 that ZeRO steps


@dataclass(frozen=True)
class Sizes:
    """Of a model and its longest micro-batch.

    Args:
        weights: bytes of all weights.
        base: bytes of the frozen ones.
        trained: how many numbers train.
        tokens: in the longest micro-batch.
        layers, hidden, ffn: the model's shape.
        width: bytes of one activation.
        quantisable: bytes that 4 bits would save of the frozen weights of the layers.
    """

    weights: int
    base: int
    trained: int
    tokens: int
    layers: int
    hidden: int
    ffn: int
    width: int
    quantisable: int = 0


def sizes(model: Any, lengths: Sequence[int], config: TrainConfig, width: int) -> Sizes:
    """Read off a model (partitioned or not) and the lengths of the rows."""
    parameters = [(whole_shape(p).numel(), p.element_size(), p.requires_grad) for p in model.parameters()]
    in_integers = bytes_of_integers(model)
    shape = model.config
    batch = config.per_device_train_batch_size
    return Sizes(
        weights=sum(n * size for n, size, _ in parameters) + in_integers,
        base=sum(n * size for n, size, trains in parameters if not trains) + in_integers,
        trained=sum(n for n, _, trains in parameters if trains),
        tokens=min(batch, len(lengths)) * max(lengths),
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        ffn=getattr(shape, "ffn_hidden_size", None)
        or getattr(shape, "inner_hidden_size", None)
        or getattr(shape, "intermediate_size", None)
        or 4 * shape.hidden_size,
        width=width,
        quantisable=sum(whole_shape(p).numel() * (2 * p.element_size() - 1) // 2 for p in frozen_matrices(model)),
    )


def frozen_matrices(model: Any) -> list[Any]:
    """The frozen matrices of the layers that are in floats."""
    return [
        p
        for name, p in model.named_parameters()
        if ".layers." in name and len(whole_shape(p)) == 2 and p.is_floating_point() and not p.requires_grad
    ]


def advice_for(job: Job, model: Any) -> list[str]:
    """What would help a run against a lack of memory."""
    offloads = "offload_optimizer" in job.ds_config["zero_optimization"]
    known = sizes(model, job.rows.lengths, job.config, job.world.dtype.itemsize)
    heaviest = job.plan.heaviest(job.rows.lengths, 0, job.plan.steps_per_epoch)
    known = replace(known, tokens=sum(job.rows.lengths[i] for i in heaviest))
    if job.tuner.needs_floats or job.zero_stage == 3:
        known = replace(known, quantisable=0)
    return advice(known, job.config, job.zero_stage, offloads, job.world.size)


def activation_bytes(s: Sizes) -> int:
    """What a forward pass keeps: about ten vectors of the hidden size and three of the feed-forward size a layer."""
    return s.tokens * s.layers * (10 * s.hidden + 3 * s.ffn) * s.width


def advice(s: Sizes, config: TrainConfig, stage: int, offloads: bool, ranks: int) -> list[str]:
    """What to change, in the order that costs least, and about what each would save on one device."""
    activations = activation_bytes(s)
    ways = []
    every, saved = config.gradient_checkpointing, activations - s.tokens * s.layers * s.hidden * s.width
    if every != 1:  # one layer in so many keeps its input alone
        now = activations - (saved // every if every else 0)
        flag = "--gradient_checkpointing full" if every else "--gradient_checkpointing"
        ways.append(f"{flag} saves about {gib(now - activations + saved)} of {gib(now)} activations")
    batch = config.per_device_train_batch_size
    if batch > 1:
        half = "--per_device_train_batch_size {} with --gradient_accumulation_steps {}"
        half = half.format(batch // 2, config.gradient_accumulation_steps * 2)
        ways.append(f"{half} saves about {gib(activations * (batch - batch // 2) // batch)}")
    elif max(1, s.tokens) > 256:
        ways.append(f"half the --max_len saves about {gib(activations // 2)}")
    states = s.trained * (ADAM_BYTES + 2 * MASTER_BYTES)
    if stage < 2 and ranks > 1:
        ways.append(f"--ds_file ds_zero2_no_offload.json saves about {gib(states * (ranks - 1) // ranks)}")
    if stage < 3 and ranks > 1:
        ways.append(
            f"--ds_file ds_zero3_no_offload.json saves about {gib(s.weights * (ranks - 1) // ranks)} of weights"
        )
    if not offloads:
        ways.append(f"--ds_file ds_zero{max(2, stage)}_offload.json saves about {gib(states // ranks)} of optimizer")
    if s.quantisable:
        ways.append(f"--quantization_bit 4 saves about {gib(s.quantisable)} of weights")
    return ways


def gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
