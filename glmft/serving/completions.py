"""Answers in the form of OpenAI's chat completions, whole and in pieces."""

import json
import secrets
import time
from typing import Any

from glmft.inference.replies import settled
from glmft.inference.tool_calls import answer_messages, may_be_call, parts_of
from glmft.serving.requests import Completion


def opening(kind: str, model: str) -> dict[str, Any]:
    """What an answer and all its pieces have in common."""
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def usage(completion: Completion) -> dict[str, int]:
    prompt, answer = len(completion.reply.prompt), len(completion.reply.ids)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def parts(completion: Completion) -> tuple[str, list[dict[str, Any]], str]:
    """Text, calls of tools, and why a finished answer ended."""
    messages = answer_messages(completion.reply, completion.tools)
    text = "".join(message["content"] for message in messages if "arguments" not in message)
    calls = [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {
                "name": message["metadata"],
                "arguments": json.dumps(message["arguments"], ensure_ascii=False),
            },
        }
        for message in messages
        if "arguments" in message
    ]
    reason = "tool_calls" if calls else "length" if completion.reply.finish_reason == "length" else "stop"
    return text, calls, reason


def whole(completion: Completion) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    text, calls, reason = parts(completion)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    name = completion.reply.member.name
    return {**opening("chat.completion", name), "choices": [choice], "usage": usage(completion)}


class Pieces:
    """The events of an answer that is streamed, each a line of JSON behind `data: `."""

    def __init__(self, completion: Completion):
        self.completion, self.sent = completion, ""
        self.common = opening("chat.completion.chunk", completion.reply.member.name)

    def first(self) -> str:
        return self._event({"role": "assistant", "content": ""})

    def next(self) -> str:
        """What has come since the last piece; empty if that is nothing that will stay."""
        return self._more(self._sure_text())

    def last(self) -> str:
        """What is left of a finished answer, why it ended, and the end mark."""
        text, calls, reason = parts(self.completion)
        events = self._more(text)
        if calls:
            events += self._event({"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})
        events += self._event({}, reason)
        if self.completion.include_usage:
            events += event({**self.common, "choices": [], "usage": usage(self.completion)})
        return events + "data: [DONE]\n\n"

    def _more(self, text: str) -> str:
        new = text[len(self.sent) :] if text.startswith(self.sent) else ""
        self.sent += new
        return self._event({"content": new}) if new else ""

    def _event(self, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        more = {"usage": None} if self.completion.include_usage else {}
        return event({**self.common, "choices": [choice], **more})

    def _sure_text(self) -> str:
        """The text so far that is no call of a tool, and does not begin like one."""
        reply, tools = self.completion.reply, self.completion.tools
        if not tools:
            return reply.text
        sure = ""
        for text in parts_of(reply):
            if may_be_call(text, tools):
                break
            sure += settled(text, reply.stops)
        return sure


def event(value: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def model_entry(name: str, opened: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": opened, "owned_by": "glmft"}
