"""The calls of tools in an answer of ChatGLM3 or GLM-4: read, never executed.

An answer's first line is its metadata. If it names a tool, what follows is a call: ChatGLM3 writes `tool_call(...)` in
a code fence, GLM-4 writes JSON. An answer may have several parts, each behind an assistant's role token.
"""

from collections.abc import Collection, Sequence
from typing import Any

from glmft.inference.replies import Reply
from glmft.models.chat import call_parameters, json_parameters
from glmft.tokenizers.chatglm4_tools import checked_tools

Message = dict[str, Any]
FAMILIES_WITH_TOOLS = ("glm3", "glm4")


def tool_names(messages: Sequence[Message]) -> set[str]:
    """The tools that a conversation tells of, in the forms of `tokenizers.chatglm4_tools` and ChatGLM3's bare one."""
    names = set()
    for message in messages:
        tools = message.get("tools")
        for tool in tools if isinstance(tools, list) else []:
            function = tool.get("function", tool) if isinstance(tool, dict) else None
            name = function.get("name", tool.get("type")) if isinstance(function, dict) else None
            names |= {name} if isinstance(name, str) else set()
    return names


def tools_as_trained(tools: Any, family: str) -> list[dict[str, Any]]:
    """Tools in the form that a family's models were trained with: ChatGLM3 knows bare descriptions, GLM-4 OpenAI's.

    Raises:
        ValueError: no list of tools, or a family that knows none.
    """
    if family not in FAMILIES_WITH_TOOLS:
        raise ValueError(f"{family} knows no tools; ChatGLM3 and GLM-4 do")
    typed = checked_tools(tools)
    return [tool.get("function", tool) for tool in typed] if family == "glm3" else typed


def answer_messages(reply: Reply, tools: Collection[str]) -> list[Message]:
    """A finished answer as the messages that a conversation goes on with.

    A call of one of the tools has the tool's name as `metadata` and its parameters as `arguments`.
    """
    tokenizer = reply.member.tokenizer
    if not tools or not tokenizer.has_roles:
        return [{"role": "assistant", "content": reply.text}]
    parts = parts_of(reply)
    calls = [_call(text, tools, tokenizer.family) for text in parts]
    if not any(calls):
        return [{"role": "assistant", "content": reply.text}]
    texts = ({"role": "assistant", "content": text.strip()} for text in parts)
    messages = [call or text for call, text in zip(calls, texts, strict=True)]
    return [message for message in messages if message["content"]]


def parts_of(reply: Reply) -> list[str]:
    """The texts of an answer that stand behind an assistant's role token each; one that a stop text cut is one part."""
    tokenizer = reply.member.tokenizer
    ids = list(reply.ids)  # another thread may be adding to them
    is_ended = bool(ids) and ids[-1] in tokenizer.stop_ids
    if reply.finish_reason == "stop" and not is_ended:
        return [reply.text]
    role, parts = tokenizer.get_command("<|assistant|>"), [[]]
    for token in ids[:-1] if is_ended else ids:
        if token == role:
            parts.append([])
        else:
            parts[-1].append(token)
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in parts]


def _call(text: str, tools: Collection[str], family: str) -> Message | None:
    """The call that a part is; None for plain text, and for a call that cannot be read."""
    name, line_break, content = text.partition("\n")
    if name.strip() not in tools or not line_break:
        return None
    arguments = json_parameters(content) if family == "glm4" else call_parameters(content.strip())
    if not isinstance(arguments, dict):
        return None
    return {"role": "assistant", "metadata": name.strip(), "content": content.strip(), "arguments": arguments}


def may_be_call(text: str, tools: Collection[str]) -> bool:
    """Whether a part of an answer is a call, or may yet become one."""
    name, line_break, _ = text.partition("\n")
    return name.strip() in tools if line_break else any(tool.startswith(name.strip()) for tool in tools)


def shown_calls(messages: Sequence[Message]) -> list[str]:
    """Each call among some messages as one line to be read: `name(argument=value, …)`."""
    return [
        f"{message['metadata']}({', '.join(f'{key}={value!r}' for key, value in message['arguments'].items())})"
        for message in messages
        if "arguments" in message
    ]
