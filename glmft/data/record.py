"""One example as a conversation, how to read it, and checks of the values that it is made of."""

from dataclasses import dataclass
from typing import Any

from glmft.errors import DataError
from glmft.reading import parse_json

Message = dict[str, Any]
TEXT = "text"  # the role of a document, which is learned as a whole


@dataclass(frozen=True)
class Record:
    """One example.

    Args:
        messages: of `role` and `content`; perhaps with `metadata` (the tool that an assistant calls), `loss` (whether
            it is learned; None: no flag), `arguments` (of that call), `tools` (described in a system message, then
            without content). A document of plain text is one message of the role `TEXT`.
        place: FILE:LINE.
    """

    messages: tuple[Message, ...]
    place: str

    @property
    def question(self) -> list[Message]:
        """All messages before the last answer."""
        return list(self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages)

    @property
    def answer(self) -> str:
        last = self.messages[-1]
        return last["content"] if last["role"] == "assistant" else ""

    @property
    def is_text(self) -> bool:
        """Whether it is a document, which asks nothing."""
        return self.messages[0]["role"] == TEXT


@dataclass(frozen=True)
class Options:
    """How to read records; the fields are flags of the same names."""

    data_format: str = "auto"
    input_separator: str = ""
    prompt_column: str | None = None
    response_column: str | None = None
    history_column: str | None = None
    source_prefix: str = ""
    on_bad_record: str = "error"


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def require_object(value: Any, keys: str) -> None:
    """Raises DataError."""
    if not isinstance(value, dict):
        raise DataError(f"a {type(value).__name__}, not an object with {keys}")


def string(value: Any, key: str) -> str:
    """Raises DataError."""
    if not isinstance(value, str):
        raise DataError(f"{key!r} is {'null' if value is None else f'a {type(value).__name__}'}, not a string")
    return value


def structured(value: Any, key: str) -> Any:
    """A list or an object, which tables, and some JSON files too, hold as a text. Raises DataError."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return parse_json(value.strip())
    except ValueError:
        raise DataError(f"{key!r} is a text that is no JSON") from None


def system(value: dict[str, Any]) -> list[Message]:
    """The message of a record's `system`, if it has one."""
    content = value.get("system") or ""
    return [{"role": "system", "content": string(content, "system")}] if content else []


def history(value: Any) -> list[Message]:
    """Earlier rounds; they are not learned."""
    value = structured(value, "history")
    if value is None or value == "":
        return []
    good = isinstance(value, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in value
    )
    if not good:
        raise DataError("the history is no list of [question, answer] pairs")
    return [m for question, answer in value for m in (user(question), {**assistant(answer), "loss": False})]
