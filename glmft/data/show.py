"""One row as a person can check it: every token's piece, id and label."""

from typing import Any

from glmft.data.encode import IGNORED, Example

LEARNED, PLAIN = "\033[32m", "\033[0m"


def token_table(example: Example, tokenizer: Any, color: bool = False) -> str:
    """A line a token, `'[gMASK]': 64790 -> -100`; what is learned has its id for a label, in green where asked for."""
    learned = {i for first, end in example.spans for i in range(first, end)}
    lines = [f"{example.place}: {len(example.ids)} tokens, {len(learned)} with a label"]
    for i, token in enumerate(example.ids):
        line = f"{piece(tokenizer, token)!r}: {token} -> {token if i in learned else IGNORED}"
        lines.append(f"{LEARNED}{line}{PLAIN}" if color and i in learned else line)
    return "\n".join(lines)


def piece(tokenizer: Any, token: int) -> str:
    """A token's piece; special tokens by their names."""
    if token == tokenizer.eos_token_id:
        return tokenizer.eos_token
    plain = tokenizer.special_texts.get(token) or tokenizer.convert_ids_to_tokens(token) or f"<{token}>"
    if isinstance(plain, bytes):
        return plain.decode("utf-8", "backslashreplace")
    text = tokenizer.decode([token]) if tokenizer.is_fast else ""  # its pieces are bytes in a code of their own
    return plain if not text or "\ufffd" in text else text
