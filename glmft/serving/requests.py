"""What a request for a chat completion may hold, checked member by member before anything looks at it."""

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glmft.errors import GlmftError, nearest, one_line
from glmft.inference.model_set import Member, ModelSet
from glmft.inference.replies import PromptTooLong, Reply, new_reply
from glmft.inference.tool_calls import tool_names
from glmft.reading import parse_json
from glmft.schema import ANYTHING, FLAG, NULL, Kind, list_of, number, one_of, table_of, text, whole
from glmft.serving.errors import RequestError, refusal
from glmft.serving.messages import MOST_TOOLS, Message, conversation_of, tools_of
from glmft.settings.answers import SamplingSettings
from glmft.settings.setting import LONG

MOST_MESSAGES = 4096
COLDEST = 0.01  # a lower temperature gives the likeliest token, and no number that is beyond all bounds
STOP = text(r".+", 256, "a text that is not empty,")

TAKEN: dict[str, Kind] = {
    "model": text(r".+", 4096),
    "messages": list_of(table_of(ANYTHING), MOST_MESSAGES),
    "stream": FLAG | NULL,
    "stream_options": table_of(FLAG, 10) | NULL,
    "max_tokens": whole(1, LONG) | NULL,
    "max_completion_tokens": whole(1, LONG) | NULL,
    "temperature": number(0, 2) | NULL,
    "top_p": number(0, 1) | NULL,
    "top_k": whole(0, LONG) | NULL,
    "repetition_penalty": number(0.1, 10) | NULL,
    "seed": whole(-(2**63), 2**64) | NULL,
    "stop": STOP | list_of(STOP, 16) | NULL,
    "tools": list_of(table_of(ANYTHING), MOST_TOOLS) | NULL,
    "tool_choice": one_of("auto", "none") | NULL,
}
# What would change an answer and is not to be had: only the value that leaves it as it is.
FIXED: dict[str, Kind] = {
    "n": one_of(1) | NULL,
    "logprobs": one_of(False) | NULL,
    "top_logprobs": one_of(0) | NULL,
    "presence_penalty": number(0, 0) | NULL,
    "frequency_penalty": number(0, 0) | NULL,
    "logit_bias": one_of({}) | NULL,
    "response_format": one_of({"type": "text"}) | NULL,
    "modalities": one_of(["text"]) | NULL,
}
# What clients send along and no answer hangs on.
IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)


@dataclass(frozen=True)
class Completion:
    """A request that has passed all checks.

    Args:
        reply: the answer, still to be made.
        tools: names of the tools that the model was told of.
        stream: give it piece by piece.
        include_usage: at the end of a stream, also say what it took.
    """

    reply: Reply
    tools: frozenset[str]
    stream: bool
    include_usage: bool


def read_completion(data: bytes, models: ModelSet, defaults: SamplingSettings, longest: int | None) -> Completion:
    """The request in a body.

    Args:
        defaults: what holds where the request says nothing.
        longest: tokens that a prompt and its answer may have; None: what the model takes.

    Raises:
        RequestError: with the first thing that is wrong with it.
    """
    values = checked(parsed(data))
    member = member_of(models, values["model"])
    tools = tools_of(values, member)
    conversation = conversation_of(values["messages"], tools)
    settings = sampling_of(values, defaults)
    asked = values.get("max_completion_tokens") or values.get("max_tokens")
    reply = reply_to(member, conversation, settings, values, min(longest or member.longest, member.longest), asked)
    options = values.get("stream_options") or {}
    names = frozenset(tool_names(conversation))
    return Completion(reply, names, bool(values.get("stream")), bool(options.get("include_usage")))


def parsed(data: bytes) -> dict[str, Any]:
    try:
        value = parse_json(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise refusal("the body is not UTF-8", None, "invalid_json") from None
    except ValueError as error:
        raise refusal(f"the body is no JSON ({one_line(error)})", None, "invalid_json") from None
    if not isinstance(value, dict):
        raise refusal(f"the body is a {type(value).__name__}, not an object", None, "invalid_json")
    return value


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a request that are known and of their kind; null stands for its absence."""
    kinds = {**TAKEN, **FIXED, **dict.fromkeys(IGNORED, ANYTHING)}
    for name, value in values.items():
        if name not in kinds:
            hint = nearest(name, kinds)
            raise refusal(f"{one_line(name, 60)}: no such member{hint}", one_line(name, 60), "unknown_parameter")
        if not kinds[name].passes(value):
            given = one_line(repr(value)[:400], 60)
            raise refusal(f"{name} is {given}; it must be {kinds[name].rule}", name)
    for name in ("model", "messages"):
        if name not in values:
            raise refusal(f"{name} is missing", name, "missing_required_parameter")
    return {name: value for name, value in values.items() if value is not None}


def member_of(models: ModelSet, name: str) -> Member:
    if name not in models.members:
        there = ", ".join(models.names)
        raise RequestError(404, f"{one_line(name, 60)}: no such model; there are {there}", "model", "model_not_found")
    return models[name]


# ---------------------------------------------------------------------------------------------------- sampling


def sampling_of(values: Mapping[str, Any], defaults: SamplingSettings) -> SamplingSettings:
    """A request that says how to sample is sampled so; temperature 0 takes the likeliest token."""
    names = ("temperature", "top_p", "top_k")
    given = {name: values[name] for name in names if name in values}
    changes: dict[str, Any] = {}
    if "repetition_penalty" in values:
        changes["repetition_penalty"] = float(values["repetition_penalty"])
    if given:
        is_cold = given.get("temperature", 1) < COLDEST or given.get("top_p", 1) == 0
        inherited = {name: getattr(defaults, name) if defaults.do_sample else None for name in names}
        changes |= {"do_sample": not is_cold, **inherited, **given}
    return dataclasses.replace(defaults, **changes)


def reply_to(
    member: Member,
    conversation: list[Message],
    settings: SamplingSettings,
    values: Mapping[str, Any],
    longest: int,
    asked: int | None,
) -> Reply:
    """The answer to be made. Raises RequestError for a conversation that the model cannot take."""
    stops = values.get("stop", [])
    number = f"seed {values['seed']}" if "seed" in values else secrets.token_hex(8)
    settings = dataclasses.replace(settings, max_new_tokens=asked or settings.max_new_tokens)
    try:
        reply = new_reply(member, conversation, settings, number, [stops] if isinstance(stops, str) else stops)
    except PromptTooLong as error:
        raise refusal(error.problems[0], code="context_length_exceeded") from None
    except GlmftError as error:
        raise refusal(error.problems[0]) from None
    room = longest - len(reply.prompt)
    if room < (asked or 1):
        raise refusal(
            f"the conversation has {len(reply.prompt)} tokens and its answer may have {asked or 1}; "
            f"{member.name} takes {longest} together",
            "messages",
            "context_length_exceeded",
        )
    reply.longest = min(reply.longest, room)
    return reply
