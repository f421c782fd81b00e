"""Conversations as ChatGLM3's demo, chat services and ShareGPT write them, as messages."""

import json
from typing import Any

from glmft.data.record import Message, Options, assistant, require_object, string, structured, system, user
from glmft.errors import DataError
from glmft.reading import parse_json

ROLES = ("system", "user", "assistant", "observation")
# What ShareGPT's `from` says, and who speaks then; the first of each are LLaMA-Factory's names.
SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function_response"), "observation"),
    **dict.fromkeys(("function_call", "function", "tool_call"), "call"),
    "system": "system",
}


def conversations(value: Any, options: Options) -> tuple[Message, ...]:
    """ChatGLM3's fine-tuning format: `conversations` of messages, and perhaps `tools`."""
    require_object(value, "conversations")
    return (*_about_tools(value), *system(value), *_each(value, "conversations", _messages))


def messages(value: Any, options: Options) -> tuple[Message, ...]:
    """`messages` as OpenAI's and ZhipuAI's services and GLM-4's fine-tuning take them.

    Tool calls and ChatGLM3's tool messages too; a message may have `metadata` and `tools`, as GLM-4's have.
    """
    require_object(value, "messages")
    tools = _about_tools(value) if value.get("tools") is not None else []
    return (*tools, *system(value), *_each(value, "messages", _messages_of_services))


def sharegpt(value: Any, options: Options) -> tuple[Message, ...]:
    """ShareGPT's format with what LLaMA-Factory has beside it: `system`, `tools`, calls and what came of them."""
    require_object(value, "conversations")
    key = next((key for key in ("conversations", "messages") if key in value), "conversations")
    tools = structured(value.get("tools") or [], "tools")
    if not isinstance(tools, list):
        raise DataError("'tools' is no list of tools, nor the JSON text of one")
    about_tools = [{"role": "system", "tools": tools}] if tools else []
    return (*about_tools, *system(value), *_each(value, key, _spoken))


def listed(value: Any, key: str) -> list[Any]:
    """The messages of a record as they stand there. Raises DataError."""
    if key not in value:
        raise DataError(f"{key!r} is missing")
    given = structured(value[key], key)
    if not isinstance(given, list) or not given:
        raise DataError(f"{key!r} is {'empty' if given == [] else 'no list of messages'}")
    return given


def _each(value: dict[str, Any], key: str, read: Any) -> list[Message]:
    built: list[Message] = []
    for number, message in enumerate(listed(value, key), 1):
        try:
            built += read(message)
        except DataError as error:
            raise DataError(f"message {number}: {error.problems[0]}") from None
    return built


def _about_tools(value: dict[str, Any]) -> list[Message]:
    """The system message that tells of a record's `tools`."""
    return [{"role": "system", "tools": structured(value["tools"], "tools")}] if "tools" in value else []


def _spoken(message: Any) -> list[Message]:
    """The messages that one of ShareGPT's stands for."""
    require_object(message, "from, value")
    speaker, text = message.get("from"), message.get("value")
    role = SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(f"'from' is {speaker!r}, none of {', '.join(SPEAKERS)}")
    text = string(text, "value")
    if role == "call":
        return _spoken_calls(text, _flag(message))
    if role == "assistant":
        return [{**assistant(text), "loss": _flag(message)}]
    if role == "observation":
        return [{"role": role, "content": text, "loss": False}]
    return [user(text)] if role == "user" else [{"role": role, "content": text}]


def _spoken_calls(text: str, loss: bool | None) -> list[Message]:
    """A call, or a list of calls, in JSON: name and arguments of each."""
    calls = structured(text, "value")
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise DataError("a call must be JSON with name and arguments")
    return [
        {**_call(string(call["name"], "name"), _arguments(call.get("arguments", {}))), "loss": loss} for call in calls
    ]


def _messages_of_services(message: Any) -> list[Message]:
    return [*_tools_of(message), *_messages(message, of_services=True)]


def _tools_of(message: Any) -> list[Message]:
    """The system message that tells of a message's `tools`."""
    if not isinstance(message, dict) or "tools" not in message:
        return []
    if not isinstance(message["tools"], list):
        raise DataError("'tools' of a message is no list; leave it out where there are none")
    return [{"role": "system", "tools": message["tools"]}]


def _messages(message: Any, of_services: bool = False) -> list[Message]:
    """The messages that one of a file stands for: a tool message is a call and what came of it."""
    require_object(message, "role, content")
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
    built: Message = {"role": role, "content": string(content, "content")}
    if built["content"] == "" and "tools" in message and of_services:
        return []
    if of_services and "metadata" in message:
        built["metadata"] = string(message["metadata"], "metadata")
    if role in ("assistant", "observation"):
        built["loss"] = _flag(message)
    return [built]


def _tool(message: dict[str, Any]) -> list[Message]:
    """ChatGLM3's `tool`: the assistant's call as Python text, then the observation, which is never learned."""
    name = string(message.get("name"), "name")
    call = {**_call(name, message.get("parameters")), "loss": _flag(message)}
    observed = message.get("observation")
    text = observed if isinstance(observed, str) else json.dumps(observed, ensure_ascii=False)
    return [call, {"role": "observation", "content": text, "loss": False}]


def _calls(message: dict[str, Any], calls: Any) -> list[Message]:
    """An assistant's `tool_calls`, each a message; text beside them comes first."""
    built: list[Message] = []
    if message.get("content"):
        built.append({"role": "assistant", "content": string(message["content"], "content"), "loss": _flag(message)})
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise DataError("'tool_calls' must be a list of objects with a function of name and arguments")
        arguments = _arguments(function.get("arguments", {}))
        built.append({**_call(string(function.get("name"), "name"), arguments), "loss": _flag(message)})
    return built


def _arguments(given: Any) -> Any:
    """The arguments of a call, which services give as a text. Raises DataError."""
    if not isinstance(given, str):
        return given
    try:
        return parse_json(given or "{}")
    except ValueError:
        raise DataError("'arguments' of a tool call are no JSON object") from None


def _call(name: str, parameters: Any) -> Message:
    if not isinstance(parameters, dict):
        raise DataError(f"the parameters of tool {name!r} are a {type(parameters).__name__}, not an object")
    arguments = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
    text = f"```python\ntool_call({arguments})\n```"  # as ChatGLM3 has a call; GLM-4 takes the arguments
    return {"role": "assistant", "metadata": name, "content": text, "arguments": parameters}


def _observation(message: dict[str, Any]) -> list[Message]:
    """OpenAI's `tool`: what a call came to."""
    return [{"role": "observation", "content": string(message["content"], "content"), "loss": False}]


def _flag(message: dict[str, Any]) -> bool | None:
    """`loss` as ChatGLM3 reads it: through int(), so 0.5 and "0" mean no."""
    if "loss" not in message:
        return None
    try:
        return bool(int(message["loss"]))
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"'loss' is {message['loss']!r}; give true or false") from None
