"""One row as a person can check it: every token's piece, id and label."""

from typing import Any, NamedTuple

from glmft.data.encode import IGNORED, Example

LEARNED, PLAIN = "\033[32m", "\033[0m"


class TokenRow(NamedTuple):
    """A token: its piece, its id, its label, and whether it is a special one."""

    piece: str
    id: int
    label: int
    is_special: bool

    @property
    def is_learned(self) -> bool:
        return self.label != IGNORED


def token_rows(example: Example, tokenizer: Any) -> list[TokenRow]:
    """Every token of a row; what is learned has its id for a label."""
    learned = {i for first, end in example.spans for i in range(first, end)}
    return [
        TokenRow(piece(tokenizer, token), token, token if i in learned else IGNORED, is_special(tokenizer, token))
        for i, token in enumerate(example.ids)
    ]


def token_table(example: Example, tokenizer: Any, color: bool = False) -> str:
    """A line a token, `'[gMASK]': 64790 -> -100`; what is learned has its id for a label, in green where asked for."""
    lines = [f"{example.place}: {len(example.ids)} tokens, {example.supervised} with a label"]
    for row in token_rows(example, tokenizer):
        line = f"{row.piece!r}: {row.id} -> {row.label}"
        lines.append(f"{LEARNED}{line}{PLAIN}" if color and row.is_learned else line)
    return "\n".join(lines)


def is_special(tokenizer: Any, token: int) -> bool:
    """Whether a token is none of a text."""
    return token == tokenizer.eos_token_id or token in tokenizer.special_texts


def piece(tokenizer: Any, token: int) -> str:
    """A token's piece; special tokens by their names."""
    if token == tokenizer.eos_token_id:
        return tokenizer.eos_token
    plain = tokenizer.special_texts.get(token) or tokenizer.convert_ids_to_tokens(token) or f"<{token}>"
    if isinstance(plain, bytes):
        return plain.decode("utf-8", "backslashreplace")
    text = tokenizer.decode([token]) if tokenizer.is_fast else ""  # its pieces are bytes in a code of their own
    return plain if not text or "\ufffd" in text else text
