"""Answers in the making: token by token, several side by side where they are drawn alike, each stopped by itself."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Queue
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from glmft.data.templates import prompt_ids
from glmft.errors import ConfigError, OutOfMemory
from glmft.inference.generation import generate
from glmft.inference.model_set import Member, ModelSet
from glmft.settings.answers import DecodingSettings, SamplingSettings

Message = dict[str, Any]


class PromptTooLong(ConfigError):
    """A conversation that leaves no room for an answer."""


class Reply:
    """One answer. The thread that generates writes it, others read `text` and `finish_reason`.

    Args:
        prompt: ids.
        settings: how it is made; `max_new_tokens` of it may be less if the model has no room for more.
        number: by which it has random numbers of its own, as a record of a file has.
        stops: texts that end it and are no part of it.
        notify: called by the thread that generates, whenever `text` has grown and at the end.

    Attributes:
        text: what it says so far, without white space around it; it only grows.
        ids: generated so far, with the token that ended it.
        finish_reason: `stop`, `length` or `cancelled`; None while it is made, and if it failed.
        error: what it failed by.
        is_cancelled: nobody wants it any more; it ends with its next token, or before its first.
    """

    def __init__(
        self,
        member: Member,
        prompt: list[int],
        settings: SamplingSettings,
        number: int | str = 0,
        stops: Sequence[str] = (),
        notify: Callable[[], None] = lambda: None,
    ):
        self.member, self.prompt, self.settings, self.number, self.stops = (
            member,
            prompt,
            settings,
            number,
            tuple(stops),
        )
        self.notify = notify
        self.longest = min(settings.max_new_tokens, member.longest - len(prompt))
        self.text, self.ids = "", []
        self._growing = GrowingText(member.tokenizer, self.ids)
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.is_cancelled = False

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def cancel(self) -> None:
        self.is_cancelled = True

    def take(self, token: int) -> None:
        """A token has been generated."""
        if self.is_finished:
            return
        if self.is_cancelled:
            self.finish("cancelled")
            return
        self.ids.append(token)
        tokenizer = self.member.tokenizer
        is_last, is_full = token in tokenizer.stop_ids, len(self.ids) >= self.longest
        if is_last or is_full:
            text = tokenizer.decode(self.ids[:-1] if is_last else self.ids, skip_special_tokens=True)
        else:
            text = self._growing.now()
        cut = min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=None)
        if cut is not None:
            self.text = text[:cut].strip()
            self.finish("stop")
        elif is_last or is_full:
            self.text = text.strip()
            self.finish("stop" if is_last else "length")
        else:
            text = settled(text, self.stops)
            if text != self.text:
                self.text = text
                self.notify()

    def finish(self, reason: str) -> None:
        self.finish_reason = reason
        self.notify()

    def fail(self, error: Exception) -> None:
        if not self.is_finished:
            self.error = error
            self.notify()


class GrowingText:
    """The text of a growing list of ids, for which the last of them alone are decoded each time."""

    LOOKED_AT, KEPT = 64, 16  # ids

    def __init__(self, tokenizer: Any, ids: list[int]):
        self.tokenizer, self.ids = tokenizer, ids
        self.before, self.start = "", 0  # text of the ids before `start`

    def now(self) -> str:
        text = self.before + self._decoded(self.start)
        if len(self.ids) - self.start > self.LOOKED_AT:
            start = len(self.ids) - self.KEPT
            last = self._decoded(start)
            if text.endswith(last):  # which it does not where a character or a blank belongs to ids on both sides
                self.before, self.start = text[: len(text) - len(last)], start
        return text

    def _decoded(self, start: int) -> str:
        return self.tokenizer.decode(self.ids[start:], skip_special_tokens=True)


def settled(text: str, stops: Sequence[str]) -> str:
    """The beginning of a text that will stay.

    That is without white space at its end, a beginning of a stop, and half a character: up to three of four bytes.
    """
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return re.sub("\ufffd{1,3}$", "", text[: len(text) - held]).strip()


def new_reply(
    member: Member,
    messages: Sequence[Message],
    settings: SamplingSettings,
    number: int | str = 0,
    stops: Sequence[str] = (),
) -> Reply:
    """The answer to a conversation, still to be made; the prompt is as the model was trained.

    Args:
        messages: of `role` and `content`, as in `glmft.data.formats.Record`.
        number: by which it has random numbers of its own, as a record of a file has.

    Raises:
        ConfigError: a conversation that the model's family cannot express.
        PromptTooLong: the model has no room for an answer to it.
    """
    try:
        prompt = prompt_ids(
            member.tokenizer, with_prefix(messages, member.trained.source_prefix), member.trained.template
        )
    except ValueError as error:
        raise ConfigError(f"{error}") from None
    if len(prompt) >= member.longest:
        raise PromptTooLong(
            f"the conversation has {len(prompt)} tokens; {member.name} takes {member.longest} with the answer"
        )
    return Reply(member, prompt, settings, number, stops)


def with_prefix(messages: Sequence[Message], prefix: str) -> Sequence[Message]:
    """A conversation whose last question begins as those of training did."""
    *before, last = messages
    if last["role"] != "user" or last["content"].startswith(prefix):
        return messages
    return [*before, {**last, "content": prefix + last["content"]}]


def can_be_joined(one: Reply, other: Reply) -> bool:
    """Whether two answers can be made in one batch, and be what they are alone."""
    if one.member is not other.member:
        return False
    return drawn_by(one.settings) == drawn_by(other.settings) and one.settings.repetition_penalty == 1


def drawn_by(settings: SamplingSettings) -> tuple:
    """What must be the same for all rows of a batch. A penalty would also count the padding of shorter rows."""
    drawn = (settings.seed, settings.temperature, settings.top_p, settings.top_k) if settings.do_sample else None
    return drawn, settings.repetition_penalty


def make(models: ModelSet, replies: Sequence[Reply]) -> None:
    """Generate answers of one model together, all of which `can_be_joined`; they hold what comes of it, errors too."""
    try:
        with models.at_work(replies[0].member.name) as (model, tokenizer):
            _generate(model, tokenizer, replies)
    except torch.OutOfMemoryError:
        if len(replies) > 1 and not any(reply.ids for reply in replies):
            for reply in replies:
                make(models, [reply])
            return
        error = OutOfMemory("the model has not enough memory for this conversation; give less text, or fewer tokens")
        for reply in replies:
            reply.fail(error)
    except Exception as error:
        for reply in replies:
            reply.fail(error)


def _generate(model: Any, tokenizer: Any, replies: Sequence[Reply]) -> None:
    for reply in replies:
        if reply.is_cancelled:
            reply.finish("cancelled")
    waiting = [reply for reply in replies if not reply.is_finished]
    if not waiting:
        return
    longest = max(reply.longest for reply in waiting)
    generate(
        model,
        tokenizer,
        [reply.prompt for reply in waiting],
        DecodingSettings(**{**vars(waiting[0].settings), "max_new_tokens": longest}),
        [reply.number for reply in waiting],
        streamer=_Rows(waiting),
        stopping_criteria=[_Finished(waiting)],
    )


class _Rows(BaseStreamer):
    """Hands each row's tokens to its reply."""

    def __init__(self, replies: Sequence[Reply]):
        self.replies, self.prompt_seen = replies, False

    def put(self, value: Tensor) -> None:
        """First the prompts [b, s], then the next token of each row [b]."""
        if self.prompt_seen:
            for reply, token in zip(self.replies, value.flatten().tolist(), strict=True):
                try:
                    reply.take(token)
                except Exception as error:  # the other rows go on
                    reply.fail(error)
        self.prompt_seen = True

    def end(self) -> None:
        pass


class _Finished(StoppingCriteria):
    """Rows whose replies are finished."""

    def __init__(self, replies: Sequence[Reply]):
        self.replies = replies

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([reply.is_finished for reply in self.replies], device=input_ids.device)


def stream(models: ModelSet, reply: Reply) -> Iterator[str]:
    """The text of a reply whenever it has grown, while it is made in a thread; leaving the iterator cancels it.

    Raises:
        what generation raises.
    """
    grown: Queue[None] = Queue()
    reply.notify = lambda: grown.put(None)
    thread = threading.Thread(target=make, args=(models, [reply]), daemon=True)
    thread.start()
    shown = ""
    try:
        while True:
            grown.get()
            is_finished, text = reply.is_finished, reply.text
            if text != shown:
                yield text
                shown = text
            if is_finished:
                break
    finally:
        reply.cancel()
        thread.join()
    if reply.error is not None:
        raise reply.error


def answer_once(models: ModelSet, name: str, messages: Sequence[Message], settings: SamplingSettings) -> Reply:
    """One whole answer."""
    reply = new_reply(models[name], messages, settings)
    for _ in stream(models, reply):
        pass
    return reply
