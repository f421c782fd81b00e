"""From settings to what the sums are about: a setting, its neighbours, and the fastest of them that fits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from glmft.planning.memory import Memory, Setting, Zero, memory
from glmft.planning.network import Load
from glmft.planning.shape import Shape
from glmft.planning.time import Pace, epoch_time
from glmft.planning.way import way_of


@dataclass(frozen=True)
class Run:
    """A setting with what an epoch of it is.

    Args:
        rows: of the training data.
        batch: rows in a micro-batch of a rank.
        accumulation: micro-batches of a rank in an optimizer step.
        flags: what else than what was asked for has to be given.
    """

    setting: Setting
    rows: int
    batch: int
    accumulation: int
    flags: tuple[str, ...] = ()

    @property
    def memory(self) -> Memory:
        return memory(replace(self.setting, accumulates=self.accumulation > 1))

    def epoch(self, pace: Pace) -> float:
        return epoch_time(self.setting, self.rows, self.batch, self.accumulation, pace)

    def at(self, ranks: int) -> "Run":
        return replace(self, setting=replace(self.setting, ranks=ranks))


def setting_of(
    config: Any, shape: Shape, load: Load, dtype: str, zero: Zero, ranks: int, on_gpu: bool, bits: str | None
) -> Setting:
    """What settings of `TrainConfig` come to. Raises ConfigError for names that a model does not have."""
    trained = 2 if config.trainable_dtype == "bf16" else 4
    way, recomputed = way_of(config, shape), recomputed_layers(config.gradient_checkpointing, shape.layers)
    cached = config.cache_frozen_activations
    return Setting(shape, way, load, dtype, trained, bits, zero, ranks, recomputed, on_gpu, cached)


def recomputed_layers(every: int, layers: int) -> frozenset[int]:
    """Numbers of the layers whose activations are computed again: of none (0), of all (1), of every Nth."""
    return frozenset(number for number in range(layers) if every and number % every == 0)


def fixed_load(rows: int, length: int, answer: int, layout: str) -> Load:
    """Rows of one length, the last tokens of which are answers."""
    answer = min(max(1, answer), length - 1)
    return Load((length,) * rows, answer * rows, (length - answer,) * rows if layout == "glm" else None)


def shipped_zero(stage: int, offloads: bool, hidden: int) -> Zero:
    """As the files in ds_configs/ say."""
    square = hidden * hidden
    zero = Zero(stage, offloads, offloads and stage == 3, overlaps=stage >= 2, bucket=square)
    return replace(zero, prefetch=int(0.9 * square), persistence=10 * hidden, reuse=10**8) if stage == 3 else zero


FILES = {
    (0, False): "ds_zero0.json",
    (1, False): "ds_zero1.json",
    (2, False): "ds_zero2_no_offload.json",
    (2, True): "ds_zero2_offload.json",
    (3, False): "ds_zero3_no_offload.json",
    (3, True): "ds_zero3_offload.json",
}


def fastest(asked: Run, pace: Pace, room: int, needs_floats: bool) -> Run | None:
    """The neighbour of least time that fits `room` bytes and learns the same from the same data; None: there is none.

    Fewer bits of the frozen weights change what is computed: they are tried where nothing else fits.
    """
    for bits in (asked.setting.bits, *([] if needs_floats or asked.setting.bits else ["8", "4"])):
        by_time = sorted(neighbours(asked, bits), key=lambda run: (_about(run.epoch(pace)), len(run.flags), -run.batch))
        found = next((run for run in by_time if run.memory.peak <= room), None)
        if found is not None:
            return found
    return None


def smallest(asked: Run) -> Run:
    """The neighbour of least memory on the device, its weights in the same format; on the host only if so asked."""
    offloads = asked.setting.zero.offloads_optimizer
    runs = [run for run in neighbours(asked, asked.setting.bits) if offloads or not run.setting.zero.offloads_optimizer]
    return min(runs, key=lambda run: (run.memory.peak, len(run.flags)))


def _about(seconds: float) -> int:
    """Times of which none is 3% longer than another are mostly one."""
    return round(math.log(seconds) / math.log(1.03))


def neighbours(asked: Run, bits: str | None) -> Iterator[Run]:
    """The same rows in an optimizer step, otherwise cut, kept and partitioned."""
    s = asked.setting
    for (stage, offloads), file in FILES.items():
        kept = s.zero.stage == stage and s.zero.offloads_optimizer == offloads
        if (bits == "nf4" and stage == 3) or (s.dtype == "fp16" and stage == 0) or (s.ranks == 1 and stage == 1):
            continue
        zero = s.zero if kept else shipped_zero(stage, offloads, s.shape.hidden)
        for recomputed in dict.fromkeys((s.recomputed, frozenset(), frozenset(range(s.shape.layers)))):
            for batch in _divisors(asked.batch):
                flags = [] if kept else [f"--ds_file {file}"]
                if recomputed != s.recomputed:
                    flags.append(f"--gradient_checkpointing {'full' if recomputed else 'off'}")
                accumulation = asked.accumulation * (asked.batch // batch)
                if batch != asked.batch:
                    flags.append(f"--per_device_train_batch_size {batch} --gradient_accumulation_steps {accumulation}")
                if bits != s.bits:
                    flags.append(f"--quantization_bit {bits}")
                load = part_of(s.load, batch, asked.batch)
                setting = replace(s, zero=zero, recomputed=recomputed, load=load, bits=bits)
                yield Run(setting, asked.rows, batch, accumulation, tuple(flags))


def part_of(load: Load, batch: int, of: int) -> Load:
    """The longest documents of a micro-batch that is cut."""
    if batch == of:
        return load
    count = max(1, math.ceil(len(load.documents) * batch / of))
    longest = sorted(range(len(load.documents)), key=lambda i: -load.documents[i])[:count]
    documents = tuple(load.documents[i] for i in longest)
    supervised = min(sum(documents), math.ceil(load.supervised * sum(documents) / load.tokens))
    return Load(documents, supervised, None if load.contexts is None else tuple(load.contexts[i] for i in longest))


def _divisors(number: int, most: int = 24) -> list[int]:
    """From the number itself down to 1; of many, some."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    found = sorted({*small, *(number // d for d in small)}, reverse=True)
    return found if len(found) <= most else [*found[:: -(-len(found) // most)], 1]
