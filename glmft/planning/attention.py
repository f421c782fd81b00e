"""Attention on a tape: document by document, with virtual tokens in front of each; what the fused kernels save."""

from collections.abc import Iterator
from typing import Any

from glmft.planning.tape import Tape, Value


class Attention:
    """One layer's attention over some documents.

    Args:
        network, load: the `Network` that the layer is of, and its `Load` or that of virtual tokens alone.
        prefix: keys and values of the layer's virtual tokens.
    """

    def __init__(self, network: Any, tape: Tape, load: Any, prefix: Value | None):
        self.network, self.tape, self.load, self.prefix = network, tape, load, prefix
        self.shape, self.width = network.shape, network.formats.computed
        self.in_front = network.way.virtual if prefix is not None else 0

    def attend(self, normed: Value, place: str) -> Value:
        """normed [t, h] -> [t, heads d]."""
        names = list(self.tape.names)
        query, key, value = self._projected(normed, place)
        inputs = [*dict.fromkeys((query, key, value)), *([self.prefix] if self.prefix is not None else [])]
        size, keys = (self.load.tokens * count * self.width for count in (self.shape.queries, self.shape.keys))
        # Gradients of each document, before they are put together; behind virtual tokens, that of the result is padded.
        by_document = 2 * size + keys if self.in_front else size
        attended = self.tape.add(inputs, size, self._saved(query, key, value), backward=by_document)
        self.tape.names = names
        return attended

    def _projected(self, normed: Value, place: str) -> tuple[Value, Value, Value]:
        """Queries and keys after their rotation, and values."""
        network, shape, tokens, width = self.network, self.shape, self.load.tokens, self.width
        tables = network.tables(tokens)
        self.is_wide = tables[0].size > tokens * width * (
            shape.head // 4 if shape.layout == "glm2" else shape.head // 2
        )
        if shape.is_native:
            query, key, value = (self._linear(normed, place, name) for name in ("q_proj", "k_proj", "v_proj"))
            widened = [Value(table.size) for table in tables]  # each layer has its own
            return self._turned(query, widened, query.size), self._turned(key, widened, key.size), value
        fused = self._linear(normed, place, "query_key_value")
        value = Value(tokens * shape.keys * width, fused.flows, fused)
        if shape.layout == "glm":
            query = self._turned(fused, tables, tokens * shape.queries * width)
            return query, self._turned(fused, tables, query.size), value
        turned = self._turned(fused, tables, tokens * (shape.queries + shape.keys) * width)
        return turned, turned, value

    def _linear(self, normed: Value, place: str, name: str) -> Value:
        result = self.network.linear(self.tape, normed, self.network.place_of(place, name, name), self.load.tokens)
        self.tape.names.append(result)
        return result

    def _turned(self, x: Value, tables: list[Value], size: int) -> Value:
        """As wide as the tables, where those are wider than products."""
        size *= 4 // self.width if self.is_wide else 1
        turned = self.tape.add([x], size, tables, backward=size)
        self.tape.names.append(turned)
        return turned

    def _saved(self, query: Value, key: Value, value: Value) -> list[Value]:
        """What the kernels save: queries, keys and values where they are taken as they stand, and what calls make."""
        own, stand = self.calls()
        names = {"query": query, "key": key, "value": value}
        return [Value(own), *(names[name] for name in stand)]

    def calls(self) -> tuple[int, frozenset[str]]:
        """Bytes that the calls of one layer make and save; and which of queries, keys and values they take as is."""
        kind = (self.load.documents, self.load.contexts, self.in_front, self.is_wide)
        if kind not in self.network.calls:
            contexts = self.load.contexts or (0,) * len(self.load.documents)
            own, stand = 0, set()
            for length, context in zip(self.load.documents, contexts, strict=True):
                for size, names in self._of_document(length, context):
                    own += size
                    stand |= names
            self.network.calls[kind] = own, frozenset(stand)
        return self.network.calls[kind]

    def _of_document(self, length: int, context: int) -> Iterator[tuple[int, set[str]]]:
        """A document's keys and values behind virtual tokens, and its one or two calls."""
        shape, width = self.shape, self.width
        stand = {"query", "key", "value"}
        if self.in_front:
            yield 2 * (self.in_front + length) * shape.keys * width, set()
            stand = {"query"}
        if context:
            yield self._call(stand, context, self.in_front + context)
        asked, before = length - context, self.in_front + context
        if asked and before > asked:  # with a mask [q, k], for which keys and values are repeated for all heads
            repeats = shape.heads != shape.groups
            repeated = 2 * (asked + before) * shape.queries * width * repeats
            size, names = self._call({"query"} if repeats else stand, asked, asked + before)
            yield size + asked * (asked + before) * width + repeated, names
        elif asked and before:
            padded = (before + asked) * shape.queries * width
            size, names = self._call(stand - {"query"}, before + asked, before + asked)
            yield size + padded, names
        elif asked:
            yield self._call(stand, asked, asked)

    def _call(self, stand: set[str], queries: int, keys: int) -> tuple[int, set[str]]:
        """Its result and a number a query and head; where queries and keys are wide, it casts its own part."""
        result = queries * self.shape.queries * self.width
        size = result + queries * self.shape.heads * 4
        if self.is_wide:
            return size + result * ("query" in stand) + keys * self.shape.keys * self.width, stand - {"query", "key"}
        return size, stand
