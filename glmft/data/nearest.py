"""What to say of a record that is of no known format: the nearest one, and the flags that would map it."""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

# Columns of questions, and of their answers, in the formats that have two.
CONTENT = {"content": "summary", "query": "response", "prompt": "response", "question": "answer"}
# What columns of other names are called by, the likeliest first.
ASKS = (
    *("question", "query", "prompt", "instruction", "input", "user", "human", "content", "source", "ask", "title", "q"),
    *("问题", "提问", "问", "指令", "输入"),
)
ANSWERS = (
    *("answer", "response", "output", "completion", "target", "reply", "assistant", "bot", "summary", "chosen", "a"),
    *("答案", "回答", "回复", "答", "输出"),
)
LONGEST_KEY = 40


def unknown(value: dict[str, Any], formats: Mapping[str, Sequence[str]]) -> str:
    """The one line about a record.

    Args:
        formats: the keys of each.
    """
    keys = ", ".join(key[:LONGEST_KEY] for key in list(value)[:12]) or "nothing"
    name = max(formats, key=lambda name: likeness(list(value)[:12], formats[name]))
    near = f"the nearest is {name} ({', '.join(formats[name])})"
    return f"an object with {keys}: of no known format; {near}; {_mend(value)}"


def likeness(keys: Sequence[str], others: Sequence[str]) -> float:
    """How near some names come to others, from 0 to 1."""

    def best(other: str) -> float:
        return max((SequenceMatcher(None, key[:LONGEST_KEY].lower(), other).ratio() for key in keys), default=0)

    return sum(map(best, others)) / len(others)


def _mend(value: dict[str, Any]) -> str:
    for key, part in list(value.items())[:12]:
        first = part[0] if isinstance(part, list) and part else None
        if isinstance(first, dict):
            if {"role", "content"} <= first.keys() or {"from", "value"} <= first.keys():
                return f"rename {key[:LONGEST_KEY]!r} to {'messages' if 'role' in first else 'conversations'!r}"
            return f"if its list {key[:LONGEST_KEY]!r} holds the records, let the file hold that list alone"
    texts = [key for key, part in value.items() if isinstance(part, str)]
    if len(texts) == 1 and len(value) == 1:
        return f"--data_format text --response_column {texts[0][:LONGEST_KEY]} would read it as plain text"
    return column_flags(value, "{} would map it") or "name its columns with --prompt_column and --response_column"


def column_flags(value: dict[str, Any], text: str, but: str = "") -> str:
    """`text` with the flags that would read a record as a question and its answer; empty if none is likely.

    Args:
        but: a column that is not there.
    """
    columns = [key for key, part in value.items() if isinstance(part, str) and key != but]
    asks, answers = _like(columns, ASKS), _like(columns, ANSWERS)
    if len(columns) == 2 and not (asks and answers):
        asks = asks or next(key for key in columns if key != answers)
        answers = answers or next(key for key in columns if key != asks)
    if not asks or not answers or asks == answers or max(len(asks), len(answers)) > LONGEST_KEY:
        return ""
    return text.format(f"--prompt_column {asks} --response_column {answers}")


def _like(columns: Sequence[str], names: Sequence[str]) -> str:
    """The column that is called as one of some names, else one that has a name in its own; empty if there is none."""
    lower = {key[:LONGEST_KEY].lower(): key for key in reversed(columns)}
    same = (lower[name] for name in names if name in lower)
    within = (key for name in names if len(name) > 1 for text, key in lower.items() if name in text)
    return next(same, "") or next(within, "")
