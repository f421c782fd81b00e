"""What users hold, as one thing: a conversation. Records are checked here, so that no bad one reaches the model."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from glmft.data.dialogues import conversations, listed, messages, sharegpt
from glmft.data.nearest import CONTENT, column_flags, unknown
from glmft.data.read import raw_records, value_of
from glmft.data.record import (
    TEXT,
    Message,
    Options,
    Record,
    assistant,
    history,
    require_object,
    string,
    system,
    user,
)
from glmft.errors import LONGEST_LINE, DataError, shortened

MOST_PROBLEMS = 5
NAME_THEM = "name the columns with --prompt_column and --response_column"


def single(query: str, answer: str, place: str = "") -> Record:
    """A record of one question and its answer."""
    return Record((user(query), assistant(answer)), place)


@dataclass
class Rejected:
    """The bad records of some files: with `on_bad_record` error the first few stop the reading, with skip none does.

    Args:
        reasons: (place, what is wrong) of each.
    """

    options: Options
    reasons: list[tuple[str, str]] = field(default_factory=list)

    def add(self, reasons: Iterable[tuple[str, str]]) -> None:
        """Raises DataError with the first few reasons if there are that many and none is allowed."""
        self.reasons += reasons
        if self.options.on_bad_record == "error" and len(self.reasons) >= MOST_PROBLEMS:
            raise self.error()

    def check(self, count: int, files: Iterable[Path | str]) -> None:
        """At the end of the reading of `count` good records. Raises DataError: none, or bad ones that must not be."""
        if self.reasons and (self.options.on_bad_record == "error" or not count):
            raise self.error()
        if not count:
            raise DataError(f"{', '.join(map(str, files))}: holds no record")

    def error(self) -> DataError:
        """The first few reasons, each once, with the places that it is true of."""
        places: dict[str, list[str]] = {}
        for place, reason in self.reasons[:MOST_PROBLEMS]:
            places.setdefault(reason.removeprefix(place), []).append(place)
        return DataError([f"{first}{reason}{_also_at(first, more)}" for reason, (first, *more) in places.items()])


def _also_at(first: str, places: list[str]) -> str:
    """What a reason that is true of several records ends with: numbers in the first one's file, other places whole."""
    file = first.rpartition(":")[0]
    numbers = (place.removeprefix(f"{file}:").strip().removeprefix("record ") for place in places)
    return f"; the same at {', '.join(numbers)}" if places else ""


@dataclass(frozen=True)
class RawChunk:
    """Some records of one file as they stand there: (place, value), all of one format."""

    format_name: str
    items: list[tuple[str, Any]]


def raw_chunks(
    files: Iterable[Path | str], options: Options, size: int, seen: dict[Path, str] | None = None
) -> Iterator[RawChunk]:
    """The records of all files in their order, `size` at a time; `seen` as in `raw_records`.

    Raises DataError for a file that cannot be read.
    """
    for path in map(Path, files):
        format_name, items = file_format(path, options), raw_records(path, seen)
        while chunk := list(islice(items, size)):
            yield RawChunk(format_name, chunk)


def good_records(chunk: RawChunk, options: Options, rejected: list[tuple[str, str]]) -> Iterator[Record]:
    """The records of a chunk; what is wrong with the others goes into `rejected`."""
    for place, raw in chunk.items:
        try:
            yield convert(place, raw, chunk.format_name, options)
        except DataError as error:
            rejected.append((place, error.problems[0]))


def read_records(
    files: Path | str | Iterable[Path | str], options: Options | None = None
) -> tuple[list[Record], Rejected]:
    """All records of one or several files, and the bad ones.

    Raises:
        DataError: a file that cannot be read or holds no record; with `on_bad_record` error, the first few bad records.
    """
    options = options or Options()
    files = [files] if isinstance(files, str | Path) else list(files)
    records, rejected = [], Rejected(options)
    for chunk in raw_chunks(files, options, size=1):
        bad: list[tuple[str, str]] = []
        records += good_records(chunk, options, bad)
        rejected.add(bad)
    rejected.check(len(records), files)
    return records, rejected


def file_format(path: Path, options: Options) -> str:
    """The format of a file: as the options say, else by its first good record; triples if there is none."""
    if options.data_format != "auto":
        return options.data_format
    for place, raw in raw_records(path):
        with contextlib.suppress(DataError):
            return detect(value_of(place, raw), options)
    return "triples"


def convert(place: str, raw: Any, format_name: str, options: Options) -> Record:
    """One checked record. Raises DataError with one line that begins with the place."""
    try:
        return Record(_checked(FORMATS[format_name].messages(value_of(place, raw), options)), place)
    except DataError as error:
        problem = _known_formats(place, raw, options) or error.problems[0]
        problem = problem if problem.startswith(place) else f"{place}: {problem}"
        raise DataError(shortened(problem, LONGEST_LINE)) from None


def _known_formats(place: str, raw: Any, options: Options) -> str | None:
    """What formats there are, if a record is of none."""
    if options.data_format == "auto":
        try:
            detect(value_of(place, raw), options)
        except DataError as error:
            return error.problems[0]
    return None


# ---------------------------------------------------------------------------------------------------- formats


def triples(value: Any, options: Options) -> tuple[Message, ...]:
    """instruction, input (may be absent, null or empty), output, and perhaps a history of pairs and a system text."""
    require_object(value, "instruction, input, output")
    for key in ("instruction", "output"):
        if key not in value:
            why = f"{key!r} is missing; every record needs instruction, input, output"
            raise DataError(why + column_flags(value, "; or give {}"))
    instruction, given = string(value["instruction"], "instruction"), string(value.get("input") or "", "input")
    query = instruction + (options.input_separator if instruction and given else "") + given
    if not query.strip():
        raise DataError("instruction and input are both empty")
    answer = string(value["output"], "output")
    return (*system(value), *history(value.get("history")), user(query), assistant(answer))


def pairs(value: Any, options: Options) -> tuple[Message, ...]:
    """A prompt and a response in columns of any name, and perhaps a history of pairs; ADGEN's by default."""
    prompt, response = "content", "summary"
    if options.prompt_column or options.response_column:  # the other one is the first that is there
        there = value.keys() - {options.prompt_column, options.response_column} if isinstance(value, dict) else ()
        prompt = next((key for key in CONTENT if key in there), prompt)
        response = next((key for key in CONTENT.values() if key in there), response)
    return _asked_and_answered(value, prompt, response, options, options.history_column)


def columns(prompt: str, response: str) -> "Reader":
    """A format of two columns, perhaps with `history` and `system` beside them."""

    def read(value: Any, options: Options) -> tuple[Message, ...]:
        require_object(value, f"{prompt}, {response}")
        rounds = _asked_and_answered(value, prompt, response, options, options.history_column or "history")
        return (*system(value), *rounds)

    return read


def _asked_and_answered(
    value: Any, prompt: str, response: str, options: Options, earlier: str | None
) -> tuple[Message, ...]:
    prompt, response = options.prompt_column or prompt, options.response_column or response
    require_object(value, f"{prompt}, {response}")
    for key in (prompt, response):
        if key not in value:
            flags = column_flags(value, "give {}", but=key)
            raise DataError(f"{key!r} is missing; {flags or NAME_THEM}")
        if not string(value[key], key):
            raise DataError(f"{key!r} is empty")
    rounds = history(value.get(earlier)) if earlier else []
    return (*rounds, user(options.source_prefix + value[prompt]), assistant(value[response]))


def plain_text(value: Any, options: Options) -> tuple[Message, ...]:
    """A document for continued pre-training: nothing is asked, all of it is learned."""
    key = options.response_column or "text"
    require_object(value, key)
    if key not in value:
        raise DataError(f"{key!r} is missing; name the text's column with --response_column")
    if not string(value[key], key).strip():
        raise DataError(f"{key!r} is empty")
    return ({"role": TEXT, "content": value[key]},)


Reader = Callable[[Any, Options], tuple[Message, ...]]


@dataclass(frozen=True)
class Format:
    """A way to write records.

    Args:
        messages: the conversation that a record's value stands for; raises DataError.
        keys: a record that has all of them is of this format, else one that has some of them.
        inside: the messages that the first of these keys lists have one of these keys.
    """

    messages: Reader
    keys: tuple[str, ...]
    inside: tuple[str, ...] = ()

    def has(self, value: dict[str, Any], how: Callable[[Iterable[bool]], bool]) -> bool:
        """Whether a record shows this format, by `all` or by `any` of the keys."""
        if not how(key in value for key in self.keys):
            return False
        if not self.inside:
            return True
        with contextlib.suppress(DataError):
            first = listed(value, next(key for key in self.keys if key in value))[0]
            return isinstance(first, dict) and any(key in first for key in self.inside)
        return False


# A record's keys are compared with the last line first. To add a format, write its function and a line here, and its
# name into `DATA_FORMATS` of the settings.
FORMATS = {
    "text": Format(plain_text, ("text",)),
    "pairs": Format(pairs, ("content", "summary")),
    "question": Format(columns("question", "answer"), ("question", "answer")),
    "prompt": Format(columns("prompt", "response"), ("prompt", "response")),
    "query": Format(columns("query", "response"), ("query", "response")),
    "triples": Format(triples, ("instruction", "output")),
    "messages": Format(messages, ("messages",)),
    "conversations": Format(conversations, ("conversations",)),
    "sharegpt": Format(sharegpt, ("conversations",), ("from", "value")),
}


def detect(value: Any, options: Options) -> str:
    """The format of a record by its keys; of a file, by its first good record."""
    if options.data_format != "auto":
        return options.data_format
    require_object(value, "instruction, input, output")
    if options.prompt_column or options.response_column:
        return "pairs"
    *asking, text = reversed(FORMATS.items())
    for how, chosen in ((all, asking), (any, asking), (all, [text])):
        for name, form in chosen:
            if form.has(value, how):
                return name
    raise DataError(unknown(value, {name: form.keys for name, form in FORMATS.items()}))


def described(format_name: str, options: Options) -> str:
    """A format, and the keys that show it or the columns that were named."""
    form = FORMATS.get(format_name, FORMATS["pairs"])
    inside = f" of {', '.join(form.inside)}" if form.inside else ""
    named = ", ".join(column for column in (options.prompt_column, options.response_column) if column)
    learned = "; continued pre-training, all of it is learned" if form.messages is plain_text else ""
    return f"{format_name} ({named or ', '.join(form.keys)}{inside}{learned})"


def _checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    for message in messages:
        for text in (message.get("content", ""), message.get("metadata", "")):
            if "\x00" in text:
                raise DataError("a text holds a NUL byte; remove it")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DataError("a text holds half a surrogate pair, which is no character; remove it") from None
    return messages
