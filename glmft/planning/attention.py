"""Attention on a tape: document by document, with virtual tokens in front of each; what the fused kernels save."""

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
        """What the kernel saves of each call: queries, keys, values, its result, a number a query and head."""
        shape, width, saved = self.shape, self.width, []
        contexts = self.load.contexts or (0,) * len(self.load.documents)
        for length, context in zip(self.load.documents, contexts, strict=True):
            keys = values = None
            if self.in_front:
                keys, values = (Value((self.in_front + length) * shape.keys * width) for _ in range(2))
            of_keys, of_values = (keys or key), (values or value)
            if context:
                saved += self._call(query, of_keys, of_values, context, self.in_front + context)
            if context < length:
                asked, before = length - context, self.in_front + context
                if before > asked:
                    saved += self._masked(query, of_keys, of_values, asked, before)
                elif before:
                    padded = Value((before + asked) * shape.queries * width)
                    saved += self._call(padded, of_keys, of_values, before + asked, before + asked)
                else:
                    saved += self._call(query, of_keys, of_values, asked, asked)
        return saved

    def _call(self, query: Value, key: Value, value: Value, queries: int, keys: int) -> list[Value]:
        result = Value(queries * self.shape.queries * self.width)
        if self.is_wide:  # a call casts its own part
            query, key = Value(result.size), Value(keys * self.shape.keys * self.width)
        return [query, key, value, result, Value(queries * self.shape.heads * 4)]

    def _masked(self, query: Value, key: Value, value: Value, asked: int, before: int) -> list[Value]:
        """With a mask [q, k], for which keys and values are repeated for all heads."""
        mask = Value(asked * (asked + before) * self.width)
        if self.shape.heads != self.shape.groups:
            key, value = (Value((asked + before) * self.shape.queries * self.width) for _ in range(2))
        return [*self._call(query, key, value, asked, asked + before), mask]
