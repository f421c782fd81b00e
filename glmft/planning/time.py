"""Time of an epoch, from a FLOP rate and what links the devices; every formula is printed by `glmft plan`.

N ranks, A micro-batches of a rank in an optimizer step, P trained numbers of w bytes, W bytes of weights. A product of
[t, in] and [in, out] takes 2 t in out operations; attention 4 for each pair of tokens that see one another and each
number of a query.
"""

import math
from dataclasses import dataclass

from glmft.planning.cards import ANY, SHARE, Card
from glmft.planning.memory import Setting
from glmft.settings.modules import lowest_layer

GB = 10**9
STEPS_OF_ADAM = 28  # bytes read and written for a number: gradient, copy, two moments, weight
HOST_RATE = 10**9  # numbers a second that AdamW steps on a host
FORMULAS = """\
compute = operations / rate, no less than the weights' bytes once a pass / memory bandwidth
sent by a rank, in an optimizer step of A micro-batches, with n = (N - 1) / N:
  ZeRO-0  2 n w P                     summed after the last backward pass
  ZeRO-1  2 n w P + n w P             the same, and the stepped weights gathered
  ZeRO-2  2 n w P A + n w P           gradients of each micro-batch, beside the backward pass if overlap_comm
  ZeRO-3  n W G A + n w P A           weights gathered G times a micro-batch: 2, 3 those computed again
step = A compute + what of the traffic nothing hides + AdamW (28 bytes a number / memory bandwidth)
epoch = ceil(rows / (batch A N)) steps"""


@dataclass(frozen=True)
class Work:
    """Operations of a micro-batch, by what they are for."""

    forward: float
    backward: float
    recomputed: float
    head: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recomputed + self.head


def work(s: Setting) -> Work:
    """What the products and the attention of a micro-batch come to."""
    shape, tokens, lowest = s.shape, s.load.tokens, _lowest_layer(s)
    modules = shape.linear_modules
    first = [name for name in modules if name in ("query_key_value", "q_proj", "k_proj", "v_proj")]
    forward = backward = recomputed = 0.0
    attention = _attention(s)
    for number in range(shape.layers):
        is_short = number == shape.layers - 1 and not shape.is_native
        once = attention
        for name, (inputs, outputs) in modules.items():
            rows = s.load.supervised if is_short and name not in first else tokens
            product = 2 * rows * inputs * outputs
            weight = shape.weight_of(name, number)
            is_target, trains = weight.removesuffix(".weight") in s.way.lora, weight in s.way.names
            low = 2 * rows * s.way.rank * (inputs + outputs) * is_target
            once += product + low
            backward += (number >= lowest) * (product + 2 * low) + trains * product
        forward += once * (number >= lowest or not s.reads_states)
        backward += 2.5 * attention * (number >= lowest)
        recomputed += once * (number in s.recomputed and number >= lowest)
    words = 2 * s.load.supervised * shape.vocabulary * shape.hidden
    ends = ("lm_head.weight", "output_layer.weight", "word_embeddings.weight")
    trains_head = any(name.endswith(ends) for name in s.way.names)
    return Work(forward, backward, recomputed, words * (2 + trains_head))


def _attention(s: Setting) -> float:
    """Of a layer: each token sees those before it; a context sees itself in both directions."""
    contexts = s.load.contexts or (0,) * len(s.load.documents)
    pairs = sum(n * n / 2 + c * c / 2 + n * s.way.virtual for n, c in zip(s.load.documents, contexts, strict=True))
    return 4 * pairs * s.shape.queries


def _lowest_layer(s: Setting) -> int:
    """The first layer that a gradient goes through."""
    if s.way.virtual:
        return 0
    return lowest_layer([*s.way.names, *s.way.lora], s.shape.layers)


@dataclass(frozen=True)
class Traffic:
    """Bytes that collective calls are about, in an optimizer step: what is reduced, and what is gathered.

    Args:
        reduced: gradients that are summed and given to all ranks.
        scattered: gradients that are summed and given to the rank that owns them.
        gathered: whole size of what ranks put together out of their parts.
    """

    reduced: float = 0
    scattered: float = 0
    gathered: float = 0

    def sent(self, ranks: int) -> float:
        """What each rank sends in rings."""
        return (2 * self.reduced + self.scattered + self.gathered) * (ranks - 1) / ranks


def traffic(s: Setting, accumulation: int) -> Traffic:
    """Of an optimizer step."""
    if s.ranks == 1:
        return Traffic()
    gradients = s.numbers * s.formats.trained
    if s.zero.stage == 0:
        return Traffic(reduced=gradients)
    if s.zero.stage < 3:
        times = accumulation if s.zero.stage == 2 else 1
        return Traffic(reduced=gradients * times, gathered=gradients)
    return Traffic(scattered=gradients * accumulation, gathered=gathered(s) * accumulation)


def gathered(s: Setting) -> int:
    """Bytes of weights that ZeRO-3 gathers in a micro-batch.

    Twice, but for a frozen head, whose gradients are made going forward; those of layers that are computed again
    three times. Once where all are few enough to be kept.
    """
    there = sum(math.prod(p) for p in s.shape.parameters.values())
    if there <= min(s.zero.live, s.zero.reuse):
        return s.weight_bytes
    ends = ("lm_head.weight", "output_layer.weight")
    is_frozen = not s.shape.is_tied and not any(name.endswith(ends) for name in s.way.names)
    words = s.shape.vocabulary * s.shape.hidden
    in_layers = s.weight_bytes * sum(
        math.prod(s.shape.of_layer(i)[n]) for i in s.recomputed for n in s.shape.of_layer(i)
    )
    return 2 * s.weight_bytes + in_layers // there - words * s.formats.frozen * is_frozen


@dataclass(frozen=True)
class Pace:
    """What runs where.

    Args:
        rate: operations a second that a device reaches.
        link: bytes a second that a rank sends to those of its host.
        network: the same between hosts.
        per_host: devices of a host.
    """

    card: Card
    rate: float
    link: float
    network: float
    per_host: int = 8


def pace_of(card: Card, dtype: str, rate: float | None, link: float | None, network: float, per_host: int) -> Pace:
    """Of a card, or as given: `rate` in TFLOP/s reached, `link` and `network` in GB/s."""
    makers = card.plain_rate if dtype == "fp32" else card.rate
    reached = (rate or (makers or ANY.rate) * SHARE) * 1e12
    return Pace(card, reached, (link or card.link) * GB, network * GB, per_host)


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step."""

    compute: float
    traffic: float
    waited: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.compute + self.waited + self.optimizer


def step_time(s: Setting, accumulation: int, pace: Pace) -> StepTime:
    """See `FORMULAS`."""
    of = work(s)
    passes = 2 + bool(s.recomputed)
    compute = max(of.total / pace.rate, passes * s.weight_bytes / (pace.card.bandwidth * GB)) * accumulation
    link = pace.link if s.ranks <= pace.per_host else min(pace.link, pace.network)
    moved = traffic(s, accumulation)
    sending = moved.sent(s.ranks) / link
    waited = sending
    if s.zero.stage == 3:
        waited = max(0.0, sending - compute)
    elif s.zero.stage == 2 and s.zero.overlaps:
        beside = Traffic(reduced=moved.reduced).sent(s.ranks) / link
        waited = sending - min(beside, compute * of.backward / of.total)
    share = s.numbers / (s.ranks if s.zero.stage else 1)
    optimizer = share * STEPS_OF_ADAM / (pace.card.bandwidth * GB)
    if s.zero.offloads_optimizer:  # gradients down, weights up, and the step on the host
        optimizer = share / HOST_RATE + share * (4 + s.formats.trained) / (pace.card.host_link * GB)
    if s.zero.offloads_parameters:
        up = gathered(s) / s.ranks * accumulation / (pace.card.host_link * GB)
        waited += max(0.0, up - compute)
    return StepTime(compute, sending, waited, optimizer)


def epoch_time(s: Setting, rows: int, batch: int, accumulation: int, pace: Pace) -> float:
    """Seconds of a pass over `rows` rows, `batch` of them in a micro-batch of a rank."""
    steps = math.ceil(rows / (batch * accumulation * s.ranks))
    return steps * step_time(s, accumulation, pace).total
