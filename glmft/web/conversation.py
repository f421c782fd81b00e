"""A conversation with several models at once: one question, an answer of each; stopped, changed, asked again."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from glmft.data.encode import Example
from glmft.data.show import TokenRow, token_rows
from glmft.errors import ConfigError
from glmft.inference.model_set import ModelSet
from glmft.inference.replies import Message, new_reply, stream
from glmft.inference.tool_calls import answer_messages, tool_names
from glmft.reading import parse_json
from glmft.settings.answers import SamplingSettings

MOST_TURNS = 1000


@dataclass
class Answer:
    """Of one model.

    Args:
        text: as far as it has come.
        messages: with which the conversation goes on; a call of a tool has `arguments`.
        reason: `stop`, `length` or `cancelled`; None while it is made, and if it failed.
        problem: what it failed by, as a sentence.
        prompt, ids: tokens that the model read, and those that it wrote.
    """

    text: str = ""
    messages: list[Message] = field(default_factory=list)
    reason: str | None = None
    problem: str = ""
    prompt: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)


@dataclass
class Turn:
    """A message of the user, or what a tool returned (`observation`), and the answers to it by model."""

    role: str
    text: str
    answers: dict[str, Answer] = field(default_factory=dict)


@dataclass
class Conversation:
    turns: list[Turn] = field(default_factory=list)

    def turns_of(self, model: str) -> list[int]:
        """The numbers of the turns that a model was asked in."""
        return [i for i, turn in enumerate(self.turns) if model in turn.answers]

    def messages(self, model: str, number: int, system: str, tools: list[Any]) -> list[Message]:
        """What a model is asked in a turn: what came before with its own answers, failed ones left out."""
        messages: list[Message] = []
        if system or tools:
            messages.append(
                {"role": "system"} | ({"tools": tools} if tools else {}) | ({"content": system} if system else {})
            )
        for turn in self.turns[:number]:
            answer = turn.answers.get(model)
            if answer is not None and answer.messages:
                messages += [{"role": turn.role, "content": turn.text}, *answer.messages]
        turn = self.turns[number]
        return [*messages, {"role": turn.role, "content": turn.text}]

    def ask(self, role: str, text: str) -> int:
        """Begin a turn; its number. Raises ConfigError if there are too many."""
        if len(self.turns) >= MOST_TURNS:
            raise ConfigError(f"the conversation has {MOST_TURNS} turns; begin a new one")
        self.turns.append(Turn(role, text))
        return len(self.turns) - 1

    def change(self, number: int, text: str) -> None:
        """Ask another question in a turn; what came after it goes."""
        self.turns[number:] = [Turn(self.turns[number].role, text)]


def answered(
    models: ModelSet, model: str, turn: Turn, messages: list[Message], sampling: SamplingSettings
) -> Iterator[Answer]:
    """A model's answer in a turn, whenever it has grown; leaving the iterator stops it. Raises GlmftError."""
    turn.answers[model] = answer = Answer()
    reply = new_reply(models[model], messages, sampling)
    answer.prompt, growing = reply.prompt, stream(models, reply)
    try:
        for text in growing:
            answer.text = text
            yield answer
    finally:
        growing.close()
        answer.text, answer.ids, answer.reason = reply.text, list(reply.ids), reply.finish_reason
        if reply.error is None:
            answer.messages = answer_messages(reply, tool_names(messages))
    yield answer


def tokens_of(answer: Answer, tokenizer: Any) -> list[TokenRow]:
    """Prompt and answer token by token; what the model wrote counts as learned."""
    ids = [*answer.prompt, *answer.ids]
    return token_rows(Example(ids, ((len(answer.prompt), len(ids)),), ""), tokenizer)


def read_tools(text: str) -> list[Any]:
    """Descriptions of tools as a user wrote them; nothing gives none. Raises ConfigError."""
    if not text.strip():
        return []
    try:
        tools = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"tools: {error}") from None
    tools = tools if isinstance(tools, list) else [tools]
    for number, tool in enumerate(tools, 1):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name", tool.get("type")), str):
            raise ConfigError(f"tools: number {number} is no object with a name, a description and parameters")
    return tools
