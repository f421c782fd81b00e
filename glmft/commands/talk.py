"""A conversation with each of several models."""

from collections import defaultdict
from typing import Any

from glmft.errors import ConfigError
from glmft.inference.model_set import Member, ModelSet
from glmft.inference.replies import PromptTooLong, Reply, new_reply
from glmft.inference.tool_calls import answer_messages, tool_names, tools_as_trained
from glmft.settings.answers import SamplingSettings

Message = dict[str, Any]


class Talk:
    """
    Args:
        history: whether a question belongs to the conversation before it.

    Attributes:
        current: the model that is asked, if not all are compared.
        rounds: what each model was asked and answered.
        was_answering: whether the last line was a question.
    """

    def __init__(self, models: ModelSet, sampling: SamplingSettings, history: bool = True):
        self.models, self.sampling, self.history = models, sampling, history
        self.current, self.compares = models.names[0], False
        self.system: str | None = None
        self.tools: list[dict[str, Any]] = []
        self.rounds: dict[str, list[Message]] = defaultdict(list)
        self.turn = 0
        self.was_answering = False

    @property
    def asked(self) -> list[str]:
        return self.models.names if self.compares else [self.current]

    @property
    def label(self) -> str:
        """What stands before a line that is typed: a model, or the tool whose result it waits for."""
        waiting = [self.rounds[name][-1]["metadata"] for name in self.asked if self._awaits_result(name)]
        return waiting[0] if waiting else "compare" if self.compares else self.current

    def ask(self, name: str, text: str) -> tuple[Reply, str]:
        """The answer to be made, and a note if the oldest rounds are left out of the conversation.

        Raises:
            ConfigError: a conversation that the model's family cannot express, or a question that is too long.
        """
        member = self.models[name]
        before = self.rounds[name] if self.history and member.takes_history else []
        question = self._question(name, text)
        wanted = min(self.sampling.max_new_tokens, member.longest // 2)
        left_out = 0
        while True:
            try:
                reply = new_reply(member, [*self.head(member), *before, question], self.sampling, self.turn)
            except PromptTooLong:
                if not before:
                    raise
            else:
                if not before or reply.longest >= wanted:
                    break
            before, left_out = without_oldest(before), left_out + 1
        self.rounds[name] = before
        return reply, f"({name}: the oldest {left_out} questions no longer fit and are left out)" if left_out else ""

    def keep(self, name: str, text: str, reply: Reply) -> list[Message]:
        """Take a question and its answer, which may have been stopped, into the conversation; the answer's messages."""
        self.turn += name == self.asked[-1]
        if not reply.ids:
            return []
        messages = answer_messages(reply, tool_names(self.head(reply.member)))
        self.rounds[name] += [self._question(name, text), *messages]
        return messages

    def _question(self, name: str, text: str) -> Message:
        return {"role": "observation" if self._awaits_result(name) else "user", "content": text}

    def _awaits_result(self, name: str) -> bool:
        return self.history and bool(self.rounds[name]) and "arguments" in self.rounds[name][-1]

    def head(self, member: Member) -> list[Message]:
        """What stands before the first question."""
        messages: list[Message] = []
        if self.tools:
            messages.append({"role": "system", "tools": tools_as_trained(self.tools, member.tokenizer.family)})
        return messages + ([{"role": "system", "content": self.system}] if self.system else [])

    def reset(self) -> None:
        self.rounds.clear()
        self.turn = 0

    def set_system(self, text: str | None) -> None:
        """Raises ConfigError if a model knows no system text."""
        without = [name for name, member in self.models.members.items() if not member.tokenizer.has_roles]
        if text and without:
            family = self.models[without[0]].tokenizer.family
            raise ConfigError(f"/system: {without[0]} is a {family} model, which knows no system text")
        self.system = text
        self.reset()

    def set_tools(self, tools: Any) -> None:
        """Raises ConfigError for what is no list of tools, or if a model knows none."""
        for name, member in self.models.members.items() if tools else ():
            try:
                tools_as_trained(tools, member.tokenizer.family)
            except ValueError as error:
                raise ConfigError(f"/tools: {name}: {error}") from None
        self.tools = tools
        self.reset()

    def records(self) -> list[dict[str, Any]]:
        """The conversations as training reads them, a record for each model that was asked."""
        records = []
        for name in self.models.names:
            if self.rounds[name]:
                messages = [*self.head(self.models[name]), *self.rounds[name]]
                records.append({"model": name, "messages": [saved(message) for message in messages]})
        return records


def without_oldest(rounds: list[Message]) -> list[Message]:
    """Messages from the second question on."""
    questions = [i for i, message in enumerate(rounds) if message["role"] == "user"]
    return rounds[questions[1] :] if len(questions) > 1 else []


def saved(message: Message) -> Message:
    """A message as a data file has it; what a tool returned is not learned."""
    kept = {name: message[name] for name in ("role", "metadata", "content", "tools") if name in message}
    if message["role"] == "system":
        kept.setdefault("content", "")
    return {**kept, "loss": False} if message["role"] == "observation" else kept
