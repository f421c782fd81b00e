"""A conversation with several models at once: one question, an answer of each; stopped, changed, asked again."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from glmft.commands.talk import Talk
from glmft.data.encode import Example
from glmft.data.show import TokenRow, token_rows
from glmft.errors import ConfigError
from glmft.inference.model_set import Member, ModelSet
from glmft.inference.replies import Message, stream
from glmft.inference.tool_calls import FAMILIES_WITH_TOOLS, shown_calls
from glmft.reading import parse_json
from glmft.settings.answers import SamplingSettings
from glmft.tokenizers.chatglm4_tools import checked_tools

MOST_TURNS = 1000


@dataclass
class Answer:
    """Of one model.

    Args:
        text: as far as it has come.
        exchange: question and answer as the conversation goes on with them; none if it failed.
        calls: of tools, each as a line.
        reason: `stop`, `length` or `cancelled`; None while it is made, and if it failed.
        note: what the model was not told of the conversation.
        problem: what it failed by, as a sentence.
        prompt, ids: tokens that the model read, and those that it wrote.
    """

    text: str = ""
    exchange: list[Message] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    reason: str | None = None
    note: str = ""
    problem: str = ""
    prompt: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)


@dataclass
class Turn:
    """A question and the answers to it by model.

    Args:
        tries: how often it was asked before, so that drawn answers differ.
    """

    text: str
    answers: dict[str, Answer] = field(default_factory=dict)
    tries: int = 0


@dataclass
class Conversation:
    turns: list[Turn] = field(default_factory=list)

    def turns_of(self, model: str) -> list[int]:
        """The numbers of the turns that a model was asked in."""
        return [i for i, turn in enumerate(self.turns) if model in turn.answers]

    def rounds(self, model: str, number: int) -> list[Message]:
        """What a model was asked and answered before a turn; what failed is left out."""
        answers = [turn.answers[model] for turn in self.turns[:number] if model in turn.answers]
        return [message for answer in answers for message in answer.exchange]

    def ask(self, text: str) -> int:
        """Begin a turn; its number. Raises ConfigError if there are too many."""
        if len(self.turns) >= MOST_TURNS:
            raise ConfigError(f"the conversation has {MOST_TURNS} turns; begin a new one")
        self.turns.append(Turn(text))
        return len(self.turns) - 1

    def change(self, number: int, text: str) -> None:
        """Ask another question in a turn; what came after it goes."""
        self.turns[number:] = [Turn(text)]


@dataclass(frozen=True)
class Manner:
    """How models are asked.

    Args:
        system: text before the first question; empty: none.
        tools: for the models that know tools.
    """

    sampling: SamplingSettings
    system: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)


def knows_tools(member: Member) -> bool:
    return member.tokenizer.family in FAMILIES_WITH_TOOLS


def answered(models: ModelSet, model: str, talk: Conversation, number: int, manner: Manner) -> Iterator[Answer]:
    """A model's answer in a turn, whenever it has grown; leaving the iterator stops it. Raises GlmftError."""
    turn = talk.turns[number]
    turn.answers[model] = answer = Answer()
    asked = Talk(models, manner.sampling)
    asked.system = manner.system or None
    asked.tools = manner.tools if knows_tools(models[model]) else []
    asked.turn = number + MOST_TURNS * turn.tries
    asked.rounds[model] = talk.rounds(model, number)
    reply, answer.note = asked.ask(model, turn.text)
    answer.prompt, growing, before = reply.prompt, stream(models, reply), len(asked.rounds[model])
    try:
        for text in growing:
            answer.text = text
            yield answer
    finally:
        growing.close()
        answer.text, answer.ids, answer.reason = reply.text, list(reply.ids), reply.finish_reason
        if reply.error is None:
            answer.calls = shown_calls(asked.keep(model, turn.text, reply))
            answer.exchange = asked.rounds[model][before:]
    yield answer


def tokens_of(answer: Answer, tokenizer: Any) -> list[TokenRow]:
    """Prompt and answer token by token; what the model wrote counts as learned."""
    ids = [*answer.prompt, *answer.ids]
    return token_rows(Example(ids, ((len(answer.prompt), len(ids)),), ""), tokenizer)


def read_tools(text: str) -> list[dict[str, Any]]:
    """Descriptions of tools as a user wrote them; nothing gives none. Raises ConfigError."""
    if not text.strip():
        return []
    try:
        tools = parse_json(text)
        tools = tools.get("tools", [tools]) if isinstance(tools, dict) else tools
        return checked_tools(tools)
    except ValueError as error:
        raise ConfigError(f"tools: {error}") from None
