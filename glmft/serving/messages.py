"""OpenAI's messages and tools as conversations have them in training."""

from collections.abc import Mapping
from typing import Any

from glmft.data.formats import Options, convert
from glmft.errors import DataError, one_line
from glmft.inference.model_set import Member
from glmft.inference.tool_calls import tools_as_trained
from glmft.schema import ANYTHING, NULL, table_of, text
from glmft.serving.errors import refusal

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_TOOLS = 128
NAME = text(r"[\w.-]{1,64}", 64, "a name of letters, digits and _ . -")


def tools_of(values: Mapping[str, Any], member: Member) -> list[dict[str, Any]]:
    """What a model is told of the tools of a request."""
    tools = values.get("tools") or []
    functions = [{"type": "function", "function": _function(tool, f"tools[{i}]")} for i, tool in enumerate(tools)]
    if not tools or values.get("tool_choice") == "none":
        return []
    try:
        return tools_as_trained(functions, member.tokenizer.family)
    except ValueError as error:
        raise refusal(f"{member.name}: {error}", "tools", "unsupported_value") from None


def _function(tool: dict[str, Any], place: str) -> dict[str, Any]:
    if tool.get("type", "function") != "function":
        raise refusal(f"{place}.type must be 'function'", place)
    function = tool.get("function", tool)
    if not isinstance(function, dict) or not NAME.passes(function.get("name")):
        raise refusal(f"{place}.function.name must be {NAME.rule}", place)
    kinds = {"description": text(longest=1 << 20) | NULL, "parameters": table_of(ANYTHING) | NULL}
    for name, kind in kinds.items():
        if not kind.passes(function.get(name)):
            raise refusal(f"{place}.function.{name} must be {kind.rule}", place)
    return {name: function[name] for name in ("name", "description", "parameters") if function.get(name) is not None}


def conversation_of(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    """OpenAI's messages as the rows of training have them."""
    built: list[Message] = []
    open_calls: dict[str, Message] = {}
    for i, message in enumerate(messages):
        role = message.get("role")
        if role == "tool":
            _answer_call(message, open_calls, f"messages[{i}]")
        elif open_calls:
            raise refusal(f"messages[{i}]: the tool calls before it have no answer")
        elif role not in ROLES:
            raise refusal(
                f"messages[{i}].role is {one_line(repr(role)[:100], 60)}; it must be one of {', '.join(ROLES)}"
            )
        else:
            built += _messages_of(message, "system" if role == "developer" else role, open_calls, f"messages[{i}]")
    if open_calls or not built or built[-1]["role"] == "assistant":
        raise refusal("messages must end with a question, or with the answers to all tool calls")
    value = {"messages": built, **({"tools": tools} if tools else {})}
    try:
        return list(convert("messages", value, "messages", Options(data_format="messages")).messages)
    except DataError as error:
        raise refusal(error.problems[0]) from None


def _messages_of(message: Message, role: str, open_calls: dict[str, Message], place: str) -> list[Message]:
    """A message without its calls, then each call, behind which its answer will come."""
    calls = message.get("tool_calls") or []
    content = _content(message, place) if message.get("content") is not None or not calls else ""
    built = [{"role": role, "content": content}] if content or not calls else []
    if calls and role != "assistant":
        raise refusal(f"{place}.tool_calls: only an assistant calls tools")
    if not isinstance(calls, list) or len(calls) > MOST_TOOLS:
        raise refusal(f"{place}.tool_calls must be a list of at most {MOST_TOOLS}")
    for call in calls:
        name = call.get("id") if isinstance(call, dict) else None
        if not isinstance(name, str) or name in open_calls:
            raise refusal(f"{place}.tool_calls: each must have an id of its own")
        observation: Message = {"role": "tool", "content": ""}
        built += [{"role": "assistant", "content": None, "tool_calls": [call]}, observation]
        open_calls[name] = observation
    return built


def _answer_call(message: Message, open_calls: dict[str, Message], place: str) -> None:
    name = message.get("tool_call_id")
    if not isinstance(name, str) or name not in open_calls:
        raise refusal(f"{place}.tool_call_id: names no tool call without an answer")
    open_calls.pop(name)["content"] = _content(message, place)


def _content(message: Message, place: str) -> str:
    """A text, or parts of text."""
    content = message.get("content")
    if isinstance(content, list) and content:
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
        raise refusal(f"{place}.content must be a text, or parts of type text")
    return content
