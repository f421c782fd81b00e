"""The forward pass of each layout on a tape: the operations of `glmft.models` and `glmft.tuners` with what they save.

Shapes: t tokens of a row, n of them supervised, P virtual tokens in front of each document.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from glmft.planning.attention import Attention
from glmft.planning.shape import Shape
from glmft.planning.tape import Tape, Value
from glmft.planning.way import Way

# As `glmft.models.nll` has them.
ON_CPU, ON_ACCELERATOR, ROWS, NARROWEST, WHOLE = 1 << 19, 1 << 26, 1024, 256, 1 << 25


@dataclass(frozen=True)
class Formats:
    """Bytes of a number.

    Args:
        frozen: of weights that do not train.
        computed: of what products give.
        trained: of parameters that train.
        casts: whether autocast brings both together (bf16).
    """

    frozen: int
    computed: int
    trained: int = 4
    casts: bool = False


@dataclass(frozen=True)
class Load:
    """A micro-batch.

    Args:
        documents: tokens of each.
        supervised: tokens that have a label.
        contexts: tokens of each that see one another in both directions (ChatGLM-6B).
    """

    documents: tuple[int, ...]
    supervised: int
    contexts: tuple[int, ...] | None = None

    @property
    def tokens(self) -> int:
        return sum(self.documents)


@dataclass
class Network:
    """
    Args:
        one_step: whether LoRA is one step for autograd; under ZeRO-3 and over integers peft's own code runs.
        keeps_inputs: whether DeepSpeed's own linear function runs, as under ZeRO-3: it keeps the input, trained or not.
        recomputed: numbers of the layers whose activations are computed again.
        on_gpu: whether an accelerator computes.
    """

    shape: Shape
    way: Way
    formats: Formats
    load: Load
    one_step: bool = True
    keeps_inputs: bool = False
    recomputed: frozenset[int] = frozenset()
    on_gpu: bool = True
    casts: dict[str, Value] = field(default_factory=dict)  # of weights, which autocast makes once
    shared: dict[str, Value] = field(default_factory=dict)  # what the layers have in common
    calls: dict[Any, tuple[int, frozenset[str]]] = field(default_factory=dict)  # of attention, which are each layer's

    def tapes(self) -> list[Tape]:
        """The parts in their order: what stands before the layers, each layer, the head."""
        before, prefix = self._virtual_tokens()
        stream = self._embedding(before)
        tapes = [before]
        for number in range(self.shape.layers):
            tape = Tape(number in self.recomputed, arguments=self._arguments(prefix))
            stream = self._layer(tape, stream, number, self.load, prefix)
            tapes.append(tape)
        return [*tapes, self._head(stream)]

    def _arguments(self, prefix: Value | None) -> tuple[Value, ...]:
        """What every layer gets beside the stream."""
        return (*self.tables(self.load.tokens), *([prefix] if prefix is not None else []))

    def tables(self, tokens: int) -> list[Value]:
        """Cosines and sines of the positions, in the format of the embedding."""
        shape, name = self.shape, next(iter(self.shape.around))
        width = self.formats.trained if name in self.way.names else self.formats.frozen
        per_token = shape.head // 2 if shape.layout != "glm2" else shape.head // 4
        kinds = (f"cos {tokens}", f"sin {tokens}")
        return [self.shared.setdefault(kind, Value(tokens * per_token * width)) for kind in kinds]

    # ------------------------------------------------------------------------------------------- parts

    def _embedding(self, tape: Tape) -> Value:
        name = next(iter(self.shape.around))
        trains, tokens = name in self.way.names, self.load.tokens
        width = self.formats.trained if trains else self.formats.frozen
        ids = Value(8 * tokens)
        of_weight = self._numbers(name) * width if trains else 0
        return tape.add([ids], tokens * self.shape.hidden * width, [ids], trained=of_weight)

    def _virtual_tokens(self) -> tuple[Tape, Value | None]:
        """What makes the keys and values of virtual tokens, and those of one layer."""
        tape, way, width = Tape(), self.way, self.formats.computed
        if not way.virtual:
            return tape, None
        value = self._encoded(tape)
        if not way.is_prompt:
            rows = len(self.load.documents) if way.dropout else 1
            whole = tape.add([value], way.virtual * self.shape.prefix_width * rows * width, self._dropped(rows))
            return tape, Value(whole.size // self.shape.layers, True, whole)
        stream = tape.add([value], way.virtual * self.shape.hidden * width)
        few, last = Load((way.virtual,), way.virtual), Tape()
        for number in range(self.shape.layers):
            is_last = number == self.shape.layers - 1  # of whose result nothing is asked
            stream = self._layer(last if is_last else tape, stream, number, few, None)
        tape.ops += last.ops[: 6 if self.shape.is_native else 4]  # as far as its keys and values
        whole = tape.add([stream], way.virtual * self.shape.prefix_width * width)
        return tape, Value(whole.size // self.shape.layers, True, whole)

    def _encoded(self, tape: Tape) -> Value:
        """The embedding of the virtual tokens, and the modules that it goes through."""
        way, formats = self.way, self.formats
        (_, width), *linear = way.encoder
        ids = Value(8 * way.virtual)
        size = way.virtual * width * formats.trained
        value = tape.add([ids], size, [ids], trained=size)
        if way.recurrent:
            size, inner = way.recurrent * formats.trained, linear[0][0]
            narrow = [Value(way.recurrent * formats.computed)] if formats.casts else []
            steps = Value(way.virtual * 44 * inner * 4)  # gates, cells and what they are made of
            value = tape.add([value], way.virtual * inner * formats.computed, [steps, *narrow], trained=size)
        for inputs, outputs in linear:
            saves = [self.cast(value, way.virtual * inputs)]
            saves += [Value(inputs * outputs * formats.computed)] if formats.casts else []
            trained = (inputs * outputs + outputs) * formats.trained
            value = tape.add([value], way.virtual * outputs * formats.computed, saves, trained=trained)
        return value

    def _dropped(self, rows: int) -> list[Value]:
        """Which numbers of a prefix dropout keeps: a bool each on an accelerator, factors on a CPU."""
        width = 1 if self.on_gpu else self.formats.computed
        return [Value(self.way.virtual * self.shape.prefix_width * rows * width)] if self.way.dropout else []

    def _layer(self, tape: Tape, stream: Value, number: int, load: Load, prefix: Value | None) -> Value:
        shape, tokens = self.shape, load.tokens
        names = list(shape.of_layer(number))
        place = names[0].partition("input_layernorm")[0]
        is_last = number == shape.layers - 1 and load is self.load
        needed = load.supervised if is_last and not shape.is_native else tokens
        tape.names = [stream]
        normed = self._norm(tape, stream, f"{place}input_layernorm.weight", tokens)
        tape.names.append(normed)
        attended = Attention(self, tape, load, prefix).attend(normed, place)
        if needed != tokens:
            stream_needed = self._chosen(tape, stream, tokens, needed)
            attended = self._chosen(tape, attended, tokens, needed)
            normed = self._chosen(tape, normed, tokens, needed) if shape.layout == "glm" else normed
        else:
            stream_needed = stream
        out = self.linear(tape, attended, self.place_of(place, "dense", "o_proj"), needed)
        if shape.layout == "native-glm4":
            out = self._norm(tape, out, f"{place}post_self_attn_layernorm.weight", tokens)
        stream = self._add(tape, normed if shape.layout == "glm" else stream_needed, out)
        normed = self._norm(tape, stream, f"{place}post_attention_layernorm.weight", needed)
        fused = self.linear(tape, normed, self.place_of(place, "dense_h_to_4h", "gate_up_proj"), needed)
        out = self.linear(
            tape, self._activation(tape, fused), self.place_of(place, "dense_4h_to_h", "down_proj"), needed
        )
        if shape.layout == "native-glm4":
            out = self._norm(tape, out, f"{place}post_mlp_layernorm.weight", tokens)
        return self._add(tape, normed if shape.layout == "glm" else stream, out)

    def _head(self, stream: Value) -> Tape:
        shape, tape, n = self.shape, Tape(), self.load.supervised
        norm = next(name for name in shape.around if "norm" in name)
        rows = self.load.tokens if shape.is_native else n
        normed = self._norm(tape, stream, norm, rows)
        chosen = self._chosen(tape, normed, rows, n) if shape.is_native else normed
        ends = ("lm_head.weight", "output_layer.weight")
        names = list(shape.around)
        name = names[0] if shape.is_tied else next(name for name in names if name.endswith(ends))
        trained = self._numbers(name) * 4 if name in self.way.names else 0
        saved = [Value(n * shape.hidden * 4), *([Value(trained)] if trained else [])]
        in_blocks = self._trained_head(n) if trained else self._frozen_head(n)
        tape.add([chosen], 4, saved, trained=trained, forward=in_blocks, backward=n * shape.hidden * 4)
        return tape

    def _frozen_head(self, n: int) -> int:
        """Bytes of the widest block of logits and what is made of them."""
        rows, budget = min(n, ROWS), ON_ACCELERATOR if self.on_gpu else ON_CPU
        words = min(self.shape.vocabulary, max(NARROWEST, min(budget // max(1, rows), 2 * budget // self.shape.hidden)))
        narrow = self.formats.computed if self.formats.computed < 4 else 0
        cast = words * self.shape.hidden * narrow if self.formats.frozen != self.formats.computed else 0
        return rows * words * (8 + narrow) + rows * self.shape.hidden * 8 + cast

    def _trained_head(self, n: int) -> int:
        rows = min(n, max(1, WHOLE // self.shape.vocabulary))
        narrow = self.formats.computed if self.formats.computed < 4 else 0
        cast = self.shape.vocabulary * self.shape.hidden * narrow
        return rows * self.shape.vocabulary * (8 + narrow) + cast + self.shape.vocabulary * self.shape.hidden * 4

    # ------------------------------------------------------------------------------------------- operations

    def _norm(self, tape: Tape, x: Value, name: str, tokens: int) -> Value:
        shape, hidden = self.shape, self.shape.hidden
        trains, width = name in self.way.names, x.size // (tokens * hidden)
        weight = hidden * self.formats.trained * trains
        wide = x if width == 4 else Value(tokens * hidden * 4)
        scale = Value(tokens * 4)
        if shape.layout == "glm":
            if self.formats.casts and self.on_gpu:  # autocast has layer norm in fp32 there
                return tape.add([x], tokens * hidden * 4, [wide, scale, Value(tokens * 4)], trained=2 * weight)
            saves = [x, Value(tokens * width), Value(tokens * width)]
            return tape.add([x], x.size, saves, trained=2 * weight, forward=0)
        of_scaling = [wide, scale] if x.flows else []
        if shape.is_native:
            normal = [Value(x.size)] if trains else []
            size = tokens * hidden * max(width, self.formats.trained * trains)
            return tape.add([x], size, [*of_scaling, *normal], trained=weight, backward=4 * tokens * hidden * 4)
        if trains:
            saves = [*of_scaling, Value(tokens * hidden * 4)]
            return tape.add([x], x.size, saves, trained=weight, backward=2 * tokens * hidden * 4)
        return tape.add([x], x.size, [x, scale], backward=tokens * hidden * 4)

    def linear(self, tape: Tape, x: Value, name: str, tokens: int) -> Value:
        """A linear module: x [tokens, in] -> [tokens, out]."""
        inputs, outputs = self.shape.linear_modules[name.rpartition(".")[2]]
        size = tokens * outputs * self.formats.computed
        if name in self.way.lora:
            return self._under_lora(tape, x, tokens, inputs, outputs)
        weight, bias = f"{name}.weight", f"{name}.bias"
        trained = sum(self._numbers(p) for p in (weight, bias) if p in self.way.names) * self.formats.trained
        if self.keeps_inputs:
            return tape.add([x], size, [x], trained=trained)
        if weight not in self.way.names:
            return tape.add([x], size, trained=trained)
        saves = [self.cast(x, tokens * inputs)]
        if self.formats.casts and self.formats.trained != self.formats.computed and x.flows:
            saves.append(self.casts.setdefault(weight, Value(self._numbers(weight) * self.formats.computed)))
        narrow = self._numbers(weight) * self.formats.computed if self.formats.casts else 0
        return tape.add([x], size, saves, trained=trained, backward=narrow)

    def cast(self, x: Value, count: int) -> Value:
        """x in the format that products take."""
        return x if x.size == count * self.formats.computed else Value(count * self.formats.computed, x.flows)

    def _under_lora(self, tape: Tape, x: Value, tokens: int, inputs: int, outputs: int) -> Value:
        rank, drops, width = self.way.rank, self.way.dropout > 0, self.formats.computed
        trained = rank * (inputs + outputs) * self.formats.trained
        low, size, rows = Value(tokens * rank * width), tokens * outputs * width, tokens * inputs
        if self.one_step:
            mask = [Value(rows)] if drops else []
            scratch = rows * width * drops
            saves = [self.cast(x, rows), *mask, low]
            return tape.add([x], size, saves, trained=trained, forward=scratch, backward=2 * scratch)
        saves = [low, *([x] if self.keeps_inputs and x.flows else [])]  # peft's own code: in the format of A and B
        wide = self.formats.trained
        if drops:
            saves += [Value(rows * (1 if self.on_gpu else wide))] if x.flows else []
            saves.append(Value(rows * width))
        else:
            saves.append(self.cast(x, rows) if wide == width else Value(rows * width))
        return tape.add([x], size, saves, trained=trained, forward=size, backward=rows * wide)

    def _activation(self, tape: Tape, fused: Value) -> Value:
        if self.shape.layout == "glm":
            return tape.add([fused], fused.size, [fused])
        half = fused.size // 2
        tape.names += [fused] if self.shape.is_native else []
        if self.shape.is_native:
            return tape.add([fused], half, [fused, Value(half)])
        return tape.add([fused], half, [fused], forward=half)

    def _chosen(self, tape: Tape, x: Value, tokens: int, needed: int) -> Value:
        """The rows of x that a loss is asked of."""
        indices = self.shared.setdefault("indices", Value(8 * needed))
        return tape.add([x], x.size // tokens * needed, [indices])

    def _add(self, tape: Tape, stream: Value, out: Value) -> Value:
        return tape.add([stream, out], max(stream.size, out.size), passes_on=True)

    def place_of(self, place: str, official: str, native: str) -> str:
        """The dotted name of a linear module in a layer."""
        number = int(place.split(".layers.")[1].rstrip("."))
        return self.shape.weight_of(native if self.shape.is_native else official, number).removesuffix(".weight")

    def _numbers(self, name: str) -> int:
        number = name.split(".layers.")[1].split(".")[0] if ".layers." in name else None
        shapes = self.shape.around if number is None else self.shape.of_layer(int(number))
        return math.prod(shapes.get(name, (0,)))
