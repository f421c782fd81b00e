"""What users hold, as one thing: a conversation. Records are checked here, so that no bad one reaches the model."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from glmft.data.read import raw_records, value_of
from glmft.errors import LONGEST_LINE, DataError, shortened
from glmft.reading import parse_json

MOST_PROBLEMS = 5
ROLES = ("system", "user", "assistant", "observation")
Message = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One example.

    Args:
        messages: of `role` and `content`; perhaps with `metadata` (the tool that an assistant calls), `loss` (whether
            it is learned; None: no flag), `arguments` (of that call), `tools` (described in a system message, then
            without content).
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


def single(query: str, answer: str, place: str = "") -> Record:
    """A record of one question and its answer."""
    return Record(({"role": "user", "content": query}, {"role": "assistant", "content": answer}), place)


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
        """The first few reasons."""
        return DataError([reason for _, reason in self.reasons[:MOST_PROBLEMS]])


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


def detect(value: Any, options: Options) -> str:
    """The format of a record by its keys; of a file, by its first good record."""
    if options.data_format != "auto":
        return options.data_format
    if not isinstance(value, dict):
        raise DataError(f"a {type(value).__name__}, not an object with instruction, input, output")
    if options.prompt_column or options.response_column:
        return "pairs"
    for name, form in FORMATS.items():
        if set(form.keys) & value.keys():
            return name
    known = "; ".join(f"{name} ({', '.join(form.keys)})" for name, form in FORMATS.items())
    raise DataError(f"an object with {', '.join(value) or 'nothing'}: of no known format. There are {known}")


def triples(value: Any, options: Options) -> tuple[Message, ...]:
    """instruction, input (may be absent, null or empty), output, and perhaps a history of pairs."""
    _object(value, "instruction, input, output")
    for key in ("instruction", "output"):
        if key not in value:
            raise DataError(f"{key!r} is missing; every record needs instruction, input, output")
    instruction, given = _string(value["instruction"], "instruction"), _string(value.get("input") or "", "input")
    query = instruction + (options.input_separator if instruction and given else "") + given
    if not query.strip():
        raise DataError("instruction and input are both empty")
    return (*_history(value.get("history")), _user(query), _assistant(_string(value["output"], "output")))


def pairs(value: Any, options: Options) -> tuple[Message, ...]:
    """A prompt and a response in columns of any name, and perhaps a history of pairs; ADGEN's by default."""
    prompt, response = options.prompt_column or "content", options.response_column or "summary"
    _object(value, f"{prompt}, {response}")
    for key in (prompt, response):
        if key not in value:
            raise DataError(f"{key!r} is missing; name the columns with --prompt_column and --response_column")
        if not _string(value[key], key):
            raise DataError(f"{key!r} is empty")
    history = _history(value.get(options.history_column)) if options.history_column else ()
    return (*history, _user(options.source_prefix + value[prompt]), _assistant(value[response]))


def conversations(value: Any, options: Options) -> tuple[Message, ...]:
    """ChatGLM3's fine-tuning format: `conversations` of messages, and perhaps `tools`."""
    _object(value, "conversations")
    return _dialogue(value, "conversations")


def messages(value: Any, options: Options) -> tuple[Message, ...]:
    """`messages` as OpenAI's and ZhipuAI's services and GLM-4's fine-tuning take them.

    Tool calls and ChatGLM3's tool messages too; a message may have `metadata` and `tools`, as GLM-4's have.
    """
    _object(value, "messages")
    return _dialogue(value, "messages")


@dataclass(frozen=True)
class Format:
    """A way to write records.

    Args:
        messages: the conversation that a record's value stands for; raises DataError.
        keys: a record that has one of them is of this format.
    """

    messages: Callable[[Any, Options], tuple[Message, ...]]
    keys: tuple[str, ...]


# In the order in which a record's keys are compared. To add one, write its function and a line here, and its name into
# `DATA_FORMATS` of the settings.
FORMATS = {
    "conversations": Format(conversations, ("conversations",)),
    "messages": Format(messages, ("messages",)),
    "triples": Format(triples, ("instruction", "output")),
    "pairs": Format(pairs, ("content", "summary")),
}


def _dialogue(value: dict[str, Any], key: str) -> tuple[Message, ...]:
    if key not in value:
        raise DataError(f"{key!r} is missing")
    if not isinstance(value[key], list) or not value[key]:
        raise DataError(f"{key!r} is {'empty' if value[key] == [] else 'no list of messages'}")
    messages: list[Message] = []
    of_services = key == "messages"
    if "tools" in value and not (of_services and value["tools"] is None):
        messages.append({"role": "system", "tools": value["tools"]})
    for number, message in enumerate(value[key], 1):
        try:
            messages += _tools_of(message) if of_services else []
            messages += _messages(message, of_services)
        except DataError as error:
            raise DataError(f"message {number}: {error.problems[0]}") from None
    return tuple(messages)


def _tools_of(message: Any) -> list[Message]:
    """The system message that tells of a message's `tools`."""
    if not isinstance(message, dict) or "tools" not in message:
        return []
    if not isinstance(message["tools"], list):
        raise DataError("'tools' of a message is no list; leave it out where there are none")
    return [{"role": "system", "tools": message["tools"]}]


def _messages(message: Any, of_services: bool) -> list[Message]:
    """The messages that one of a file stands for: a tool message is a call and what came of it."""
    _object(message, "role, content")
    role = message.get("role")
    if role == "tool":
        return _observation(message) if "content" in message and "parameters" not in message else _tool(message)
    if role not in ROLES:
        raise DataError(f"role {role!r} is none of {', '.join(ROLES)}, tool")
    calls = message.get("tool_calls")
    if role == "assistant" and calls:
        return _calls(message, calls)
    if "content" not in message:
        raise DataError(f"'content' of a message of {role} is missing")
    content = message["content"]
    if role == "assistant" and isinstance(content, dict | list):
        raise DataError("'content' is no string; conversations with the code interpreter are not supported")
    if content is None and "tools" in message and of_services:
        return []
    built: Message = {"role": role, "content": _string(content, "content")}
    if built["content"] == "" and "tools" in message and of_services:
        return []
    if of_services and "metadata" in message:
        built["metadata"] = _string(message["metadata"], "metadata")
    if role in ("assistant", "observation"):
        built["loss"] = _flag(message)
    return [built]


def _tool(message: dict[str, Any]) -> list[Message]:
    """ChatGLM3's `tool`: the assistant's call as Python text, then the observation, which is never learned."""
    name = _string(message.get("name"), "name")
    call = {**_call(name, message.get("parameters")), "loss": _flag(message)}
    observed = message.get("observation")
    text = observed if isinstance(observed, str) else json.dumps(observed, ensure_ascii=False)
    return [call, {"role": "observation", "content": text, "loss": False}]


def _calls(message: dict[str, Any], calls: Any) -> list[Message]:
    """An assistant's `tool_calls`, each a message; text beside them comes first."""
    built: list[Message] = []
    if message.get("content"):
        built.append({"role": "assistant", "content": _string(message["content"], "content"), "loss": _flag(message)})
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise DataError("'tool_calls' must be a list of objects with a function of name and arguments")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = parse_json(arguments or "{}")
            except ValueError:
                raise DataError("'arguments' of a tool call are no JSON object") from None
        built.append({**_call(_string(function.get("name"), "name"), arguments), "loss": _flag(message)})
    return built


def _call(name: str, parameters: Any) -> Message:
    if not isinstance(parameters, dict):
        raise DataError(f"the parameters of tool {name!r} are a {type(parameters).__name__}, not an object")
    arguments = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
    text = f"```python\ntool_call({arguments})\n```"  # as ChatGLM3 has a call; GLM-4 takes the arguments
    return {"role": "assistant", "metadata": name, "content": text, "arguments": parameters}


def _observation(message: dict[str, Any]) -> list[Message]:
    """OpenAI's `tool`: what a call came to."""
    return [{"role": "observation", "content": _string(message["content"], "content"), "loss": False}]


def _flag(message: dict[str, Any]) -> bool | None:
    """`loss` as ChatGLM3 reads it: through int(), so 0.5 and "0" mean no."""
    if "loss" not in message:
        return None
    try:
        return bool(int(message["loss"]))
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"'loss' is {message['loss']!r}; give true or false") from None


def _history(value: Any) -> list[Message]:
    """Earlier rounds; they are not learned."""
    if value is None:
        return []
    good = isinstance(value, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in value
    )
    if not good:
        raise DataError("the history is no list of [question, answer] pairs")
    return [m for question, answer in value for m in (_user(question), {**_assistant(answer), "loss": False})]


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _object(value: Any, keys: str) -> None:
    if not isinstance(value, dict):
        raise DataError(f"a {type(value).__name__}, not an object with {keys}")


def _string(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{key!r} is {'null' if value is None else f'a {type(value).__name__}'}, not a string")
    return value


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
