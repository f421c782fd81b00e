"""Chat text to token ids, one function for training, evaluation, prediction and chat.

Special tokens are put in by id and text is encoded as text, so what a user writes never becomes a special token.
"""

from typing import Any


def prompt_ids(tokenizer: Any, query: str) -> list[int]:
    """The official prompt of the tokenizer's family for one question, up to the answer's cue."""
    return tokenizer.chat_ids([{"role": "user", "content": query}])


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """What the model must emit after the prompt, without the end token."""
    head = tokenizer.encode_text("\n") if tokenizer.family == "glm3" else []
    return head + tokenizer.encode_text(answer)


def unsupervised_length(tokenizer: Any, prompt: list[int]) -> int:
    """How many of the prompt's tokens have no label: all, but ChatGLM-6B learns to open an answer with `<sop>`."""
    return len(prompt) - (tokenizer.family == "glm")


def cue_length(tokenizer: Any, prompt: list[int]) -> int:
    """How many tokens at the prompt's end are the answer's cue, which a cut must keep."""
    if tokenizer.family == "glm":
        return len(tokenizer.prefix_ids)
    if tokenizer.family == "glm3":
        return 1
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")  # the cue is two line breaks, then the answer's mark
    return prompt[::-1].index(newline) + 2


def answer_text(tokenizer: Any, ids: list[int]) -> str:
    """The text of generated ids, up to what ends an answer."""
    end = next((i for i, token in enumerate(ids) if token in tokenizer.stop_ids), len(ids))
    return tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
