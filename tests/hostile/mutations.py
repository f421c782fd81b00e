"""Seeded damage: to JSON values, to bytes, to texts. Every function takes its random generator."""

import copy
import json
import random
from typing import Any

HUGE = [10**9, 2**31, 2**63, 10**20, -1, 0, 1e308, -1e308, 10**30]
TEXTS = [
    "",
    "evil",
    "../../outside",
    "/etc/passwd",
    "a" * 5000,
    "名" * 300,
    "\u202e\u0000x",
    "(.*)*(.*)*!",
    "((((a+)+)+)+)+$",
    "__import__('canary')",
    "canary:run",
    "\n\n\n",
    "\x1b[2J",
    "%s%n{0}{}",
    "NaN",
    "torch.load",
]
VALUES = [None, True, False, [], {}, [[]], {"a": {}}, ["x"], 0.5, *HUGE, *TEXTS]


def paths_of(value: Any, path: tuple = ()) -> list[tuple]:
    """The places of all values inside a JSON value."""
    found = [path] if path else []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(parts)[:60]:
        found += paths_of(part, (*path, key))
    return found


def replaced(value: Any, path: tuple, new: Any) -> Any:
    """A copy with another value at a place; `delete` takes it out."""
    whole = copy.deepcopy(value)
    holder = whole
    for key in path[:-1]:
        holder = holder[key]
    if new is DELETE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = new
    return whole


DELETE = object()


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def mutated_json(value: Any, rng: random.Random) -> str:
    """JSON text of a value with one thing wrong with it, or one thing strange."""

    text = json.dumps(value, ensure_ascii=False)
    kind = rng.choice(
        ["value", "value", "value", "value", "delete", "add", "text", "deep", "double", "bytes", "number"]
    )
    if kind == "value" and paths_of(value):
        return json.dumps(replaced(value, rng.choice(paths_of(value)), copy.deepcopy(rng.choice(VALUES))))
    if kind == "delete" and paths_of(value):
        return json.dumps(replaced(value, rng.choice(paths_of(value)), DELETE))
    if kind == "add" and isinstance(value, dict):
        key = rng.choice([*TEXTS, "auto_map", "quantization_config", "to_dict", "megatron_config", "custom_generate"])
        return json.dumps({**value, key: rng.choice(VALUES)})
    if kind == "deep":
        return text[:-1] + f', "deep": {nested(rng.choice([10, 900, 5000, 100_000]))}}}'
    if kind == "double":
        return text[:-1] + ', "model_type": "a", "model_type": "b"}'
    if kind == "number":
        literal = rng.choice(["1e400", "NaN", "-Infinity", "1" * 5000, "0x10", "1_000", '"\\ud800"'])
        key = rng.choice(list(value)) if isinstance(value, dict) and value else "x"
        return text[:-1] + f', "{key}_": {literal}}}'
    if kind == "bytes":
        return damaged(text.encode(), rng).decode("utf-8", "replace")
    return rng.choice(
        ["", "null", "[]", "3", '"x"', "{", text[: len(text) // 2], text + text, nested(100_000), "\ufeff" + text]
    )


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes cut, flipped, doubled, filled or exchanged."""
    kind = rng.choice(["cut", "flip", "flip", "zero", "grow", "empty", "head"])
    if not data or kind == "empty":
        return b""
    at = rng.randrange(len(data))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 5, 50])):
            changed[rng.randrange(min(len(data), rng.choice([16, 2000, len(data)])))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == "zero":
        return data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]
    if kind == "head":
        return rng.randbytes(64) + data[64:]
    return data + rng.randbytes(100)
