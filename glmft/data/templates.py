"""Conversations to token ids and labels, one way for training, evaluation, prediction and chat.

Special tokens are put in by id and text is encoded as text, so what a user writes never becomes a special token.

A row is a prompt, which ends with the answer's cue, an answer, and the end token. What the model must emit has a label;
in ChatGLM3's dialogues that is also every earlier answer and the role token that follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


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
    if tokenizer.family != "glm3" or template == "raw":
        return encode(message["content"])
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
    if tokenizer.family == "glm3":
        return 1
    newline = tokenizer.get_command("<0x0A>")  # the cue is two line breaks, then the answer's mark
    return prompt[::-1].index(newline) + 2


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of generated ids, up to what ends an answer."""
    end = next((i for i, token in enumerate(ids) if token in tokenizer.stop_ids), len(ids))
    return tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


def learned_conversations(
    tokenizer: Any, messages: Sequence[Message], template: str = "default", loss_on: str = "flagged"
) -> list[Sequence[Message]]:
    """The conversations that become rows: a whole ChatGLM3 dialogue, else one up to each answer that is learned.

    Of a dialogue each message says by `loss` whether it is learned. `flagged`: all of an assistant but where a flag
    says no (of an observation too, as ChatGLM3's own script has it); `all`: all of an assistant; `last`: the last one.
    """
    answers = {i for i, message in enumerate(messages) if message["role"] == "assistant"}
    learned = {max(answers)} if loss_on == "last" and answers else answers
    if loss_on == "flagged":
        shown = {i for i, message in enumerate(messages) if message["role"] == "observation"}
        learned = {i for i in answers | shown if messages[i].get("loss") is not False}
    if tokenizer.family == "glm3" and template == "default":
        return [[{**message, "loss": i in learned} for i, message in enumerate(messages)]] if learned else []
    return [messages[: i + 1] for i in sorted(learned & answers)]


def make_row(tokenizer: Any, messages: Sequence[Message], template: str = "default") -> Row:
    """The row of one of `learned_conversations`, perhaps without its oldest turns. Raises ValueError."""
    if tokenizer.family == "glm3" and template == "default":
        return _dialogue(tokenizer, messages)
    prompt = prompt_ids(tokenizer, messages[:-1], template)
    # ChatGLM-6B learns to open an answer with <sop>, and so does the reference project's ChatGLM3 with its role.
    opens = tokenizer.family == "glm" or (tokenizer.family == "glm3" and template == "reference")
    opening = frozenset({len(prompt) - 1} if opens else ())
    return Row(prompt, answer_ids(tokenizer, messages[-1], template), opening)


def _dialogue(tokenizer: Any, messages: Sequence[Message]) -> Row:
    """ChatGLM3: a token has a label if the token before it belongs to a message that is learned."""
    has_answer = messages[-1]["role"] == "assistant"
    ids, positions = list(tokenizer.prefix_ids), []
    for message in messages[:-1] if has_answer else messages:
        part = tokenizer.message_ids(message)
        if message["loss"]:
            positions += range(len(ids) + 1, len(ids) + len(part) + 1)
        ids += part
    if not has_answer:
        return Row(ids, None, frozenset(positions), False)
    ids.append(tokenizer.get_command("<|assistant|>"))
    return Row(ids, answer_ids(tokenizer, messages[-1]), frozenset(positions), messages[-1]["loss"])


@dataclass(frozen=True)
class ExtraLengths:
    """What a template does not count as the flags do, in tokens.

    Args:
        prompt: of a prompt, beside `max_src_len`.
        unused: of `max_len`, which no answer gets.
    """

    prompt: int = 0
    unused: int = 0


def extra_lengths(tokenizer: Any, template: str) -> ExtraLengths:
    """The reference project cuts a question to `max_src_len` before it adds special tokens by id.

    For ChatGLM-6B and ChatGLM2 these are [gMASK] and the start mark. For ChatGLM3 a role token comes to them, and its
    data set takes these three off the answer's room a second time.
    """
    if template != "reference":
        return ExtraLengths()
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
    user, assistant = tokenizer.get_command("<|user|>"), tokenizer.get_command("<|assistant|>")
    return [*tokenizer.prefix_ids, user, *encode("\n"), *encode(text), assistant]
