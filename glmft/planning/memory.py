"""Memory of a training step, by part: what stays through it, and its three moments of most memory.

N ranks, P trained numbers of w bytes (in fp32 unless the run says otherwise), R numbers of a gradient bucket:

| ZeRO stage | weights | gradients | optimizer (two moments; from 1 on, a copy to step) | buckets |
|---|---|---|---|---|
| 0 | all | w P | 8 P | none |
| 1 | all | w P / N, w P in accumulation | 12 P / N | w R |
| 2 | all | w P / N | 12 P / N | 2 w R (w R without overlap_comm) |
| 3 | all / N, and those gathered | w P / N | 12 P / N | w R |

Offloaded, the optimizer's part and its gradients are the host's, and with `offload_param` the weights' part, too.
What a forward pass keeps is counted by `glmft.planning.network`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from glmft.errors import ConfigError
from glmft.planning.network import Formats, Load, Network
from glmft.planning.shape import Shape
from glmft.planning.tape import backward_peak, bytes_kept, forward_peak
from glmft.planning.way import Way

MOMENTS, MASTER = 8, 4  # bytes a number: Adam's two in fp32, and the copy that ZeRO steps
MOST = 10**15
FLATTENED = 5 * 10**8  # numbers of the gradient that ZeRO-0 sums over ranks at once


@dataclass(frozen=True)
class Zero:
    """What counts of a DeepSpeed file's `zero_optimization`; the defaults are DeepSpeed's.

    Args:
        bucket: numbers of a gradient bucket.
        prefetch, persistence, live, reuse: of stage 3, in numbers.
    """

    stage: int = 0
    offloads_optimizer: bool = False
    offloads_parameters: bool = False
    overlaps: bool = False
    bucket: int = 5 * 10**8
    prefetch: int = 5 * 10**7
    persistence: int = 10**5
    live: int = 10**9
    reuse: int = 10**9

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "Zero":
        """Of a resolved `zero_optimization`."""
        stage = section.get("stage", 0)
        overlaps = section.get("overlap_comm")
        numbers = {
            "bucket": "reduce_bucket_size",
            "prefetch": "stage3_prefetch_bucket_size",
            "persistence": "stage3_param_persistence_threshold",
            "live": "stage3_max_live_parameters",
            "reuse": "stage3_max_reuse_distance",
        }
        given = {name: _count(key, section[key]) for name, key in numbers.items() if key in section}
        return cls(
            stage,
            stage > 0 and _is_offloaded(section.get("offload_optimizer")),
            stage == 3 and _is_offloaded(section.get("offload_param")),
            stage == 3 if overlaps is None else bool(overlaps),
            **given,
        )


def _count(key: str, value: Any) -> int:
    """Raises ConfigError for what is no number of numbers."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MOST:
        raise ConfigError(f"zero_optimization: {key} {value!r} is no number from 0 to {MOST}")
    return int(value)


def _is_offloaded(section: Any) -> bool:
    return isinstance(section, Mapping) and section.get("device") in ("cpu", "nvme")


@dataclass(frozen=True)
class Setting:
    """A run, as far as its memory goes.

    Args:
        dtype: fp32, bf16 or fp16.
        trained: bytes of a trained number in fp32 and bf16 runs.
        bits: 8, 4 or nf4, where the layers' weights are held so.
        recomputed: numbers of the layers whose activations are computed again.
        accumulates: whether an optimizer step has several micro-batches, so that gradients are there from the start.
        reads_states: whether what comes into the lowest trained layer is read from the disk.
    """

    shape: Shape
    way: Way
    load: Load
    dtype: str = "bf16"
    trained: int = 4
    bits: str | None = None
    zero: Zero = field(default_factory=Zero)
    ranks: int = 1
    recomputed: frozenset[int] = frozenset()
    on_gpu: bool = True
    reads_states: bool = False
    accumulates: bool = False

    @property
    def formats(self) -> Formats:
        if self.dtype == "fp32":
            return Formats(4, 4, self.trained)
        return Formats(2, 2, self.trained, True) if self.dtype == "bf16" else Formats(2, 2, 2)

    @cached_property
    def numbers(self) -> int:
        """How many numbers train."""
        return self.way.numbers(self.shape)

    @cached_property
    def network(self) -> Network:
        keeps_inputs = self.zero.stage == 3 and self.bits is None
        one_step = self.bits is None and self.zero.stage < 3
        return Network(
            self.shape, self.way, self.formats, self.load, one_step, keeps_inputs, self.recomputed, self.on_gpu
        )

    @cached_property
    def weight_bytes(self) -> int:
        """Of the whole model, with what trains beside it."""
        formats, total = self.formats, self.way.added * self.formats.trained
        for name, shape in self.shape.parameters.items():
            count = math.prod(shape)
            if name in self.way.names:
                total += count * formats.trained
            elif self.bits and ".layers." in name and len(shape) == 2:
                total += held_bytes(count, shape[0], self.bits, formats.frozen)
            else:
                total += count * formats.frozen
        return total


def held_bytes(count: int, rows: int, bits: str, width: int) -> int:
    """Of a quantised matrix: integers with a scale a row, or nf4 with a byte for 64 and a number for 256 of those."""
    if bits == "nf4":
        return count // 2 + count // 64 + count // (64 * 256) * 4
    return count * int(bits) // 8 + rows * width


@dataclass(frozen=True)
class Memory:
    """Bytes by part, on the device and on its host (a rank's share).

    Args:
        activations: what is kept when a forward pass is through.
        head: what the head and the loss need beside that.
        forward, backward, step: the most at one time in each.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    buckets: int
    forward: int
    backward: int
    step: int
    host: dict[str, int]

    @property
    def peak(self) -> int:
        return max(self.forward, self.backward, self.step)

    @property
    def moment(self) -> str:
        """When the peak comes."""
        return max(("forward", "backward", "step"), key=lambda name: getattr(self, name))

    @property
    def parts(self) -> dict[str, int]:
        names = ("weights", "gradients", "optimizer", "activations", "head", "buckets")
        return {name: getattr(self, name) for name in names}


def memory(s: Setting) -> Memory:
    """What a step of a run needs, once its optimizer has its moments."""
    stage, ranks, width, zero = s.zero.stage, s.ranks, s.formats.trained, s.zero
    share = -(-s.numbers // ranks)
    weights = s.weight_bytes if stage < 3 else s.weight_bytes // ranks
    is_whole = stage == 0 or (stage == 1 and s.accumulates)
    gradients = s.numbers * width if is_whole else share * width
    states = s.numbers * MOMENTS if stage == 0 else share * (MOMENTS + MASTER)
    buckets = _buckets(s)
    host = {"weights": 0, "gradients": 0, "optimizer": 0}
    if zero.offloads_optimizer:
        host |= {"gradients": share * 4, "optimizer": states}
        gradients = states = 0
    gathered = _gathered(s)
    if zero.offloads_parameters:
        host["weights"], weights = weights, 0
    from_start = gradients if stage == 3 or s.accumulates else 0  # of the micro-batches before
    lasting = 1.0 if stage == 0 else 1 / ranks if gradients else 0.0
    tapes = s.network.tapes()
    kept, first = bytes_kept(tapes), forward_peak(tapes)
    then = backward_peak(tapes, 0.0 if from_start else lasting)
    made = _made_anew(s)
    stays = weights + states + from_start + (buckets if stage == 3 else 0)
    return Memory(
        weights + gathered,
        gradients,
        states,
        kept,
        max(0, first - kept),
        buckets,
        forward=stays + first + made + gathered,
        backward=stays + then + made + gathered + (buckets if stage in (1, 2) else 0),
        step=stays + gradients - from_start + _step(s, share),
        host=host,
    )


def _buckets(s: Setting) -> int:
    """Of gradients on their way to the other ranks."""
    width = s.formats.trained
    if s.zero.stage == 0:
        return min(s.numbers, FLATTENED) * width if s.ranks > 1 else 0
    return s.zero.bucket * width * (2 if s.zero.stage == 2 and s.zero.overlaps else 1)


def _gathered(s: Setting) -> int:
    """Weights that ZeRO-3 has in full at one time: a layer's or the words', the next ones, those used again soon."""
    if s.zero.stage < 3 or (s.ranks == 1 and not s.zero.offloads_parameters):
        return 0
    shape = s.shape
    there = sum(math.prod(p) for p in shape.parameters.values()) + s.way.added
    largest = max(sum(math.prod(p) for p in shape.of_layer(0).values()), shape.vocabulary * shape.hidden)
    most = min(largest + s.zero.prefetch + s.zero.reuse, max(s.zero.live, largest))
    return s.weight_bytes * min(there, most) // there


def _made_anew(s: Setting) -> int:
    """Of the largest weight that is held in integers, for the time of its product: it and its integers unpacked."""
    if s.bits is None:
        return 0
    largest = max(inputs * outputs for inputs, outputs in s.shape.linear_modules.values())
    return largest * (s.formats.computed + (s.bits == "4"))


def _step(s: Setting, share: int) -> int:
    """What AdamW needs for itself: on an accelerator all at once, on a CPU parameter by parameter."""
    if s.zero.offloads_optimizer:
        return 0
    if s.zero.stage == 0:
        largest = max((math.prod(s.shape.parameters[n]) for n in s.way.names), default=0)
        largest = max(largest, *(a * b for a, b in s.way.encoder), 0)
        return _buckets(s) + (s.numbers * 4 if s.on_gpu else 2 * 4 * largest)
    return share * (8 if s.on_gpu else 12)
