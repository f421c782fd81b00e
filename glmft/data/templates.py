"""Conversations to token ids and labels, one way for training, evaluation, prediction and chat.

Special tokens are put in by id and text is encoded as text, so what a user writes never becomes a special token.

A row is a prompt, which ends with the answer's cue, an answer, and the end token. What the model must emit has a label;
in dialogues of ChatGLM3 and GLM-4 that is also every earlier answer and the role token that follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
COMBINED = "combined"


@dataclass(frozen=True)
class Row:
    """What one answer becomes, uncut.

    Args:
        prompt: ids, the answer's cue included.
        answer: ids without the end token; None: the row ends with a message that is no answer.
        learned: which of the prompt's positions have a label.
        last: whether the answer has labels.
        dialogue: whether the prompt has several turns, which may take the room that the answer leaves.
    """

    prompt: list[int]
    answer: list[int] | None
    learned: frozenset[int] = frozenset()
    last: bool = True
    dialogue: bool = False


def prompt_ids(tokenizer: Any, messages: Sequence[Message] | str, template: str = "default") -> list[int]:
    """The prompt of a conversation (or of one question), up to the answer's cue.

    Raises:
        ValueError: a conversation that the family or the template cannot express.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if template == "default":
        return tokenizer.chat_ids(messages)
    if [message["role"] for message in messages] != ["user"]:
        raise ValueError(f"the {template} template takes one question and one answer")
    text = messages[0]["content"]
    return _reference_prompt(tokenizer, text) if template == "reference" else _raw_prompt(tokenizer, text)


def answer_ids(tokenizer: Any, message: Message | str, template: str = "default") -> list[int]:
    """What the model must emit after the prompt, without the end token."""
    message = {"content": message} if isinstance(message, str) else message
    encode = _encode(tokenizer, template)
    if not tokenizer.has_roles or template == "raw":
        return encode(message["content"])
    if template == "default":
        return tokenizer.body_ids(message)
    return encode(f"{message.get('metadata') or ''}\n") + encode(message["content"])


def cue_length(tokenizer: Any, prompt: Sequence[int], template: str = "default") -> int:
    """How many tokens at the prompt's end are the answer's cue, which a cut must keep."""
    if template == "reference":
        # The project keeps a number of tokens: a line break and 答： are three pieces of ChatGLM-6B's vocabulary, two
        # line breaks and 答： four of ChatGLM2's; ChatGLM3's cue is the assistant's role token.
        return {"glm": 3 + len(tokenizer.prefix_ids), "glm2": 4, "glm3": 1}[tokenizer.family]
    if tokenizer.family == "glm":
        return len(tokenizer.prefix_ids)
    if template == "raw":
        return 0
    if tokenizer.has_roles:
        return prompt[::-1].index(tokenizer.get_command("<|assistant|>")) + 1
    newline = tokenizer.get_command("<0x0A>")  # the cue is two line breaks, then the answer's mark
    return prompt[::-1].index(newline) + 2


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of generated ids, up to what ends an answer."""
    end = next((i for i, token in enumerate(ids) if token in tokenizer.stop_ids), len(ids))
    return tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


def learned_conversations(
    tokenizer: Any, messages: Sequence[Message], template: str = "default", loss_on: str = "flagged"
) -> Sequence[Sequence[Message]]:
    """The conversations that become rows: a whole dialogue of a family with roles, else one up to each learned answer.

    Of a dialogue each message says by `loss` whether it is learned. `flagged`: all of an assistant but where a flag
    says no (of an observation too, as ChatGLM3's own script has it); `all`: all of an assistant; `last`: the last one;
    `combined`: the last one as GLM-4's own script has it (`_combined`).
    """
    roles = ("assistant", "observation") if loss_on == "flagged" and tokenizer.family == "glm3" else ("assistant",)
    learned = [i for i, message in enumerate(messages) if message["role"] in roles]
    if loss_on == "flagged":
        learned = [i for i in learned if messages[i].get("loss") is not False]
    elif loss_on != "all":
        learned = learned[-1:]
    if tokenizer.has_roles and template == "default":
        yes = COMBINED if loss_on == COMBINED else True
        return [[{**message, "loss": i in learned and yes} for i, message in enumerate(messages)]] if learned else []
    return Beginnings(messages, [i for i in learned if messages[i]["role"] == "assistant"])


class Beginnings(Sequence[Sequence[Message]]):
    """A conversation up to and with each of some messages, cut when asked for: together they are many times it."""

    def __init__(self, messages: Sequence[Message], last: list[int]):
        self.messages, self.last = messages, last

    def __len__(self) -> int:
        return len(self.last)

    def __getitem__(self, index: Any) -> Any:
        return self.messages[: self.last[index] + 1]


def make_row(tokenizer: Any, messages: Sequence[Message], template: str = "default") -> Row:
    """The row of one of `learned_conversations`, perhaps without its oldest turns. Raises ValueError."""
    if tokenizer.has_roles and template == "default":
        combined = COMBINED in [message["loss"] for message in messages]
        return _combined(tokenizer, messages) if combined else _dialogue(tokenizer, messages)
    prompt = prompt_ids(tokenizer, messages[:-1], template)
    # ChatGLM-6B learns to open an answer with <sop>, and so does the reference project's ChatGLM3 with its role.
    opens = tokenizer.family == "glm" or (tokenizer.family == "glm3" and template == "reference")
    opening = frozenset({len(prompt) - 1} if opens else ())
    return Row(prompt, answer_ids(tokenizer, messages[-1], template), opening)


def _dialogue(tokenizer: Any, messages: Sequence[Message]) -> Row:
    """A token has a label if the token before it belongs to a message that is learned."""
    has_answer = messages[-1]["role"] == "assistant"
    parts = tokenizer.message_parts(messages)
    ids, positions = list(tokenizer.prefix_ids), []
    for message, part in parts[:-1] if has_answer else parts:
        if message["loss"]:
            positions += range(len(ids) + 1, len(ids) + len(part) + 1)
        ids += part
    if not has_answer:
        return Row(ids, None, frozenset(positions), False)
    role, *answer = parts[-1][1]
    return Row([*ids, role], answer, frozenset(positions), messages[-1]["loss"])


def _combined(tokenizer: Any, messages: Sequence[Message]) -> Row:
    """As GLM-4's own script with `combine: true`: the last answer but its first token, and all that follows it.

    That script prints properties of tools that are null; with `combine: false` it leaves them out, as we always do.
    """
    messages = [{**message, "null_properties": True} for message in messages]
    ids, first = list(tokenizer.prefix_ids), 0
    for message, part in tokenizer.message_parts(messages):
        first = len(ids) + 2 if message["loss"] else first
        ids += part
    return Row(ids[:first], ids[first:])


@dataclass(frozen=True)
class ExtraLengths:
    """What a template does not count as the flags do, in tokens.

    Args:
        prompt: of a prompt, beside `max_src_len`.
        unused: of `max_len`, which no answer gets.
    """

    prompt: int = 0
    unused: int = 0


NOTHING_EXTRA = ExtraLengths()


def extra_lengths(tokenizer: Any, template: str) -> ExtraLengths:
    """The reference project cuts a question to `max_src_len` before it adds special tokens by id.

    For ChatGLM-6B and ChatGLM2 these are [gMASK] and the start mark. For ChatGLM3 a role token comes to them, and its
    data set takes these three off the answer's room a second time.
    """
    if template != "reference":
        return NOTHING_EXTRA
    return ExtraLengths(prompt=3, unused=3) if tokenizer.family == "glm3" else ExtraLengths(prompt=2)


# ------------------------------------------------------------------------------------- other templates


def _encode(tokenizer: Any, template: str) -> Any:
    if template != "reference":
        return tokenizer.encode_text
    return lambda text: tokenizer.encode(text, add_special_tokens=False)  # special tokens in the text are read


def _raw_prompt(tokenizer: Any, text: str) -> list[int]:
    """The bare text, for base models that know no chat."""
    ids = tokenizer.encode_text(text)
    return ids + tokenizer.prefix_ids if tokenizer.family == "glm" else tokenizer.prefix_ids + ids


def _reference_prompt(tokenizer: Any, text: str) -> list[int]:
    """The prompt of the DeepSpeed reference project (ChatGLM-Finetuning)."""
    encode = _encode(tokenizer, "reference")
    if tokenizer.family == "glm":
        return encode(f"[Round 1]\n问：{text}\n答：") + tokenizer.prefix_ids
    if tokenizer.family == "glm2":
        return tokenizer.prefix_ids + encode(tokenizer.build_prompt(text))
    if tokenizer.family != "glm3":
        raise ValueError("the reference template is that of ChatGLM-Finetuning, which knows no GLM-4; take default")
    user, assistant = tokenizer.get_command("<|user|>"), tokenizer.get_command("<|assistant|>")
    return [*tokenizer.prefix_ids, user, *encode("\n"), *encode(text), assistant]
