"""What automatic differentiation keeps, counted: operations on sizes in the place of tensors.

A forward pass is written down as operations, each with the tensors that it saves for its backward pass. Several may
save the same tensor, or views of it: it counts once. Walked backwards, a tensor goes when the last operation that saved
it is through, and gradients come in its place.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Value:
    """A tensor.

    Args:
        size: in bytes.
        flows: whether a gradient goes to it.
        store: the tensor that it is a view of; None: itself.
    """

    size: int
    flows: bool = False
    store: "Value | None" = None

    @property
    def memory(self) -> "Value":
        return self if self.store is None else self.store.memory


@dataclass(frozen=True, eq=False)
class Op:
    """
    Args:
        saves: tensors for the backward pass.
        forward, backward: bytes that either pass needs for itself and gives back.
        trained: bytes of the gradients of parameters that it makes.
        passes_on: whether the gradient of its result is, as it is, that of each input.
        beside: tensors that the code still has by name, saved or not.
    """

    inputs: tuple[Value, ...]
    result: Value
    saves: tuple[Value, ...] = ()
    forward: int = 0
    backward: int = 0
    trained: int = 0
    passes_on: bool = False
    beside: tuple[Value, ...] = ()

    @property
    def stores(self) -> set[Value]:
        return {value.memory for value in self.saves}


@dataclass
class Tape:
    """The operations of a part of the model, in their order.

    Args:
        recomputed: whether only its first input is kept, and it runs again in the backward pass.
        arguments: what is then kept beside that input.
        names: tensors that the code has by name where the next operation comes.
    """

    recomputed: bool = False
    ops: list[Op] = field(default_factory=list)
    arguments: tuple[Value, ...] = ()
    names: list[Value] = field(default_factory=list)

    def add(
        self, inputs: Iterable[Value], size: int, saves: Iterable[Value] = (), trained: int = 0, **more: Any
    ) -> Value:
        """One operation; its result needs a gradient if an input does, or if it trains something itself."""
        inputs = tuple(inputs)
        result = Value(size, trained > 0 or any(value.flows for value in inputs))
        kept = tuple(saves) if result.flows else ()
        self.ops.append(Op(inputs, result, kept, trained=trained, beside=tuple(self.names), **more))
        return result

    @property
    def kept(self) -> set[Value]:
        """What stays behind its forward pass."""
        if self.recomputed:
            return {value.memory for value in (self.ops[0].inputs[0], *self.arguments) if self.flowing}
        return set().union(*(op.stores for op in self.ops))

    @property
    def flowing(self) -> list[Op]:
        """Its operations that have a backward pass."""
        return [op for op in self.ops if op.result.flows]


def bytes_of(values: Iterable[Value]) -> int:
    return sum(value.size for value in values)


def bytes_kept(tapes: Sequence[Tape]) -> int:
    """Bytes that are kept when the forward pass of all parts is through."""
    return bytes_of(set().union(*(tape.kept for tape in tapes)))


def forward_peak(tapes: Sequence[Tape]) -> int:
    """Most bytes of the forward pass: what is kept by then, and what an operation has before it and makes."""
    before, most = Live(), 0
    for tape in tapes:
        there = before.copy() if tape.recomputed else before
        most = max(most, _peak_of_part(tape, there, tape.recomputed))
        before.add(tape.kept)
    return most


class Live:
    """Tensors that are there, each once, and their bytes."""

    def __init__(self, values: Iterable[Value] = ()):
        self.values: set[Value] = set()
        self.size = 0
        self.add(values)

    def add(self, values: Iterable[Value]) -> None:
        for value in values:
            if value not in self.values:
                self.values.add(value)
                self.size += value.size

    def size_with(self, values: Iterable[Value]) -> int:
        """Bytes of these and others."""
        return self.size + bytes_of({value.memory for value in values} - self.values)

    def copy(self) -> "Live":
        other = Live()
        other.values, other.size = set(self.values), self.size
        return other


def _peak_of_part(tape: Tape, there: Live, forgets: bool) -> int:
    """Most bytes of a part's forward pass; what it saves is added to `there` unless it forgets it."""
    first, most = tape.ops[0].inputs[0], 0
    for op in tape.ops:
        there.add(() if forgets else op.stores)
        most = max(most, there.size_with((first, *op.inputs, *op.beside, *op.saves, op.result)) + op.forward)
    return most


def backward_peak(tapes: Sequence[Tape], share: float = 1.0) -> int:
    """Most bytes of the backward pass.

    Args:
        share: of the gradients of parameters, how much stays until its end; the rest goes through a bucket at once.
    """
    return max(_backward(tapes, share), default=0)


def _backward(tapes: Sequence[Tape], share: float) -> Iterator[int]:
    """Bytes during each operation."""
    uses = Uses()
    for tape in tapes:
        uses.add(tape.kept if tape.recomputed else _uses(tape))
    gradients: dict[Value, int] = {}
    of_parameters = 0
    for tape in reversed(tapes):
        if tape.recomputed and tape.flowing:
            yield _peak_of_part(tape, Live(uses.counts), False) + sum(gradients.values()) + of_parameters
            uses.add(_uses(tape))
        for op in reversed(tape.flowing):
            _hand_on(op, gradients)
            of_parameters += op.trained
            yield uses.size + sum(gradients.values()) + of_parameters + op.backward
            of_parameters -= int(op.trained * (1 - share))
            gradients.pop(op.result, None)
            uses.drop(op.stores)
        if tape.recomputed:
            uses.drop(tape.kept)


class Uses:
    """Tensors, how many operations still need each, and their bytes."""

    def __init__(self) -> None:
        self.counts: Counter[Value] = Counter()
        self.size = 0

    def add(self, values: Iterable[Value]) -> None:
        for value in values:
            self.size += 0 if self.counts[value] else value.size
            self.counts[value] += 1

    def drop(self, values: Iterable[Value]) -> None:
        for value in values:
            self.counts[value] -= 1
            if not self.counts[value]:
                del self.counts[value]
                self.size -= value.size


def _uses(tape: Tape) -> Iterator[Value]:
    return (store for op in tape.ops for store in op.stores)


def _hand_on(op: Op, gradients: dict[Value, int]) -> None:
    """Put the gradients of an operation's inputs in their places; views share the place of what they look at."""
    wanted = [value for value in op.inputs if value.flows]
    arrived = gradients.pop(op.result, 0) if op.passes_on else 0
    for number, value in enumerate(wanted):  # what is passed on, several look at
        size = value.size if not op.passes_on else arrived if number == 0 else 0
        gradients[value.memory] = max(gradients.get(value.memory, 0), size)
