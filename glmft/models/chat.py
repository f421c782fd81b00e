"""`chat` and `stream_chat` as the official classes have them: a history goes in and comes out with the new round."""

import ast
import copy
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from queue import Queue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

Message = dict[str, Any]
Round = tuple[str, str]
TIME, YEAR = "[[训练时间]]", "2023年"  # what the models were taught to write, and what users are shown
HALF_AND_FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
IDEOGRAPH = "[\u4e00-\u9fff]"


class Chat:
    """A part of a model that generates."""

    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: Sequence[Round] | Sequence[Message] | None = None,
        role: str = "user",
        max_length: int | None = None,
        num_beams: int = 1,
        do_sample: bool = True,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, list]:
        """One answer.

        Args:
            history: ChatGLM-6B, ChatGLM2: (question, answer) pairs; ChatGLM3, GLM-4: messages. The first may be of role
                `system` and have `tools`; an assistant's may have `metadata`.
            role: of the query, for ChatGLM3 and GLM-4: `user` or, for what a tool returned, `observation`.
            max_length: of prompt and answer, in tokens; by default 2048 for ChatGLM-6B, 8192 for the others.
            top_p, temperature: by default those of the official class: 0.7 and 0.95 for ChatGLM-6B, else 0.8.
            kwargs: settings of `generate`.

        Returns:
            the answer, for a call of a tool a dict of its name and parameters; and the history with this round.
        """
        ids, history = prompt_of(tokenizer, query, history, role)
        settings = settings_of(tokenizer, max_length, do_sample, top_p, temperature, logits_processor, kwargs)
        inputs = tokenizer.pad({"input_ids": [ids]}, padding=True, return_tensors="pt").to(self.device)
        output = self.generate(**inputs, num_beams=num_beams, **settings)[0, len(ids) :].tolist()
        return answer_of(tokenizer, text_of(tokenizer, output), query, history)

    @torch.no_grad()
    def stream_chat(
        self,
        tokenizer: Any,
        query: str,
        history: Sequence[Round] | Sequence[Message] | None = None,
        role: str = "user",
        past_key_values: DynamicCache | None = None,
        max_length: int | None = None,
        do_sample: bool = True,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: Any = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple]:
        """As `chat`, with the answer so far and the history with it after every token that completes a character.

        Args:
            past_key_values: what the last round gave; it spares computing what both rounds begin with.
            return_past_key_values: give it as a third value.
        """
        ids, history = prompt_of(tokenizer, query, history, role)
        settings = settings_of(tokenizer, max_length, do_sample, top_p, temperature, logits_processor, kwargs)
        # In ChatGLM-6B a prompt sees itself in both directions: with a longer one all its keys are others.
        cache = reusable(past_key_values if tokenizer.family != "glm" else None, ids)
        inputs = tokenizer.pad({"input_ids": [ids]}, padding=True, return_tensors="pt").to(self.device)
        output: list[int] = []
        is_shown = True
        for token in chain(tokens_of(self, {**inputs, **settings, "past_key_values": cache}), (None,)):
            is_last = token is None
            output += [] if is_last else [token]
            cache.ids = [*ids, *output]
            text = text_of(tokenizer, output)
            if is_last and is_shown:
                return
            is_shown = is_last or not text.endswith("\ufffd")  # a character may take several tokens
            if is_shown:
                answer, after = answer_of(tokenizer, text, query, history)
                yield (answer, after, cache) if return_past_key_values else (answer, after)

    def process_response(self, output: str, history: Sequence[Message]) -> tuple[Any, list[Message]]:
        """An answer of ChatGLM3 or GLM-4 in parts: what it says, and the history with its messages."""
        return messages_of(output, history, as_json=self.config.family == "glm4")


# ---------------------------------------------------------------------------------------------------- prompts


def prompt_of(
    tokenizer: Any, query: str, history: Sequence[Any] | None, role: str
) -> tuple[list[int], list[Round] | list[Message]]:
    """Ids of the prompt, and the history in a list of its own, for families with roles with the query at its end.

    Raises:
        ValueError: a role or a history that the family cannot express.
    """
    if tokenizer.has_roles:
        messages = [*copy.deepcopy(list(history or [])), {"role": role, "content": query}]
        return tokenizer.chat_ids(messages), messages
    rounds = [(question, answer) for question, answer in history or []]
    messages = [
        {"role": name, "content": text} for one in rounds for name, text in zip(("user", "assistant"), one, strict=True)
    ]
    return tokenizer.chat_ids([*messages, {"role": role, "content": query}]), rounds


def settings_of(
    tokenizer: Any,
    max_length: int | None,
    do_sample: bool,
    top_p: float | None,
    temperature: float | None,
    logits_processor: Any,
    more: dict[str, Any],
) -> dict[str, Any]:
    """What `generate` is given; the official classes' defaults where nothing is said."""
    first = tokenizer.family == "glm"
    settings: dict[str, Any] = {"do_sample": do_sample, "eos_token_id": tokenizer.stop_ids}
    if do_sample:
        settings["top_p"] = top_p if top_p is not None else (0.7 if first else 0.8)
        settings["temperature"] = temperature if temperature is not None else (0.95 if first else 0.8)
    if "max_new_tokens" not in more:
        settings["max_length"] = max_length if max_length is not None else (2048 if first else 8192)
    if logits_processor is not None:
        settings["logits_processor"] = logits_processor
    return {**settings, "pad_token_id": tokenizer.pad_token_id, **more}


# ---------------------------------------------------------------------------------------------------- answers


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """The text of generated ids up to what ends an answer."""
    end = next((i for i, token in enumerate(ids) if token in tokenizer.stop_ids), len(ids))
    return tokenizer.decode(ids[:end])


def answer_of(tokenizer: Any, text: str, query: str, history: list) -> tuple[Any, list]:
    """What users are shown of an answer, and the history with it."""
    if tokenizer.has_roles:
        return messages_of(text, history, as_json=tokenizer.family == "glm4")
    text = text.strip().replace(TIME, YEAR)
    if tokenizer.family == "glm":
        text = full_width(text)
    return text, [*history, (query, text)]


def full_width(text: str) -> str:
    """Punctuation beside an ideograph in its full width."""
    for half, full in HALF_AND_FULL_WIDTH.items():
        text = re.sub(f"({IDEOGRAPH}){re.escape(half)}", rf"\1{full}", text)
        text = re.sub(f"{re.escape(half)}({IDEOGRAPH})", rf"{full}\1", text)
    return text


def messages_of(output: str, history: Sequence[Message], as_json: bool) -> tuple[Any, list[Message]]:
    """An answer in parts, of which each begins with its metadata and a line break.

    Args:
        as_json: a call's parameters are JSON, as GLM-4 writes them; else a Python call in a code fence.

    Returns:
        the last part: its text, or of a call the name and, if the history's system message has tools, the parameters;
        and the history with all parts.
    """
    messages, content = list(history), ""
    for part in output.split("<|assistant|>"):
        metadata, text = part.split("\n", maxsplit=1) if "\n" in part else ("", part)
        if not metadata.strip():
            text = text.strip()
            content = text.replace(TIME, YEAR)
        else:
            content = {"name": metadata.strip(), "content": text}
            parameters = None
            if messages and messages[0]["role"] == "system" and "tools" in messages[0]:
                parameters = json_parameters(text) if as_json else call_parameters(text)
            if parameters is not None:
                content = {"name": metadata.strip(), "parameters": parameters}
        messages.append({"role": "assistant", "metadata": metadata, "content": text})
    return content, messages


def json_parameters(text: str) -> Any:
    """What a call's JSON says; None if it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def call_parameters(text: str) -> dict[str, Any] | None:
    """The keyword arguments of a `tool_call(...)` inside a code fence, which is read and not executed; None if it is
    anything but a call with plain values."""
    try:
        call = ast.parse("\n".join(text.split("\n")[1:-1]).strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
            return None
        return {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


# ---------------------------------------------------------------------------------------------------- streams


class _Stream(BaseStreamer):
    """Hands on each token that `generate` makes, but not the prompt, which it gives first."""

    def __init__(self) -> None:
        self.queue: Queue = Queue()
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self.prompt_seen:
            self.queue.put(value.flatten().tolist())
        self.prompt_seen = True

    def end(self) -> None:
        self.queue.put(None)


class _Abandoned(StoppingCriteria):
    """Stops generation that nobody reads any more."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def tokens_of(model: Any, settings: dict[str, Any]) -> Iterator[int]:
    """The tokens of one row as `generate`, in a thread of its own, makes them; raises what it raises."""
    stream, abandoned = _Stream(), Event()

    def work() -> None:
        try:
            criteria = [*settings.pop("stopping_criteria", []), _Abandoned(abandoned)]
            model.generate(**settings, stopping_criteria=criteria, streamer=stream)
        except Exception as error:
            stream.queue.put(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while (given := stream.queue.get()) is not None:
            if isinstance(given, Exception):
                raise given
            yield from given
    finally:
        abandoned.set()
        thread.join()


def reusable(cache: DynamicCache | None, ids: list[int]) -> DynamicCache:
    """A cache with what it holds of a prompt's beginning, all but the prompt's last token at most."""
    if cache is None:
        return DynamicCache()
    same = 0
    for before, now in zip(getattr(cache, "ids", [])[: cache.get_seq_length()], ids[:-1], strict=False):
        if before != now:
            break
        same += 1
    if not same:
        return DynamicCache()
    if same < cache.get_seq_length():
        cache.crop(same - cache.get_seq_length())
    return cache
