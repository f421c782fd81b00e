"""What ends an answer of ChatGLM3, whose configuration names one token only."""

from pathlib import Path
from typing import Any

from glmft.errors import ConfigError
from glmft.family import family_of_folder

OFFICIAL_VOCABULARY = {65024: 64789}  # pieces, by the padded size
USER, OBSERVATION = 6, 8  # behind the pieces


def stop_ids(config: Any, folder: str | Path) -> list[int] | None:
    """The end token, `<|user|>` and `<|observation|>` for a folder of ChatGLM3; None for others."""
    try:
        family = config.family or family_of_folder(folder)
    except ConfigError:  # neither the configuration nor the folder tells ChatGLM2 and ChatGLM3 apart
        return None
    if family != "glm3" or not isinstance(config.eos_token_id, int):
        return None
    pieces = _pieces(Path(folder)) or OFFICIAL_VOCABULARY.get(config.padded_vocab_size)
    return [config.eos_token_id, pieces + USER, pieces + OBSERVATION] if pieces else None


def _pieces(folder: Path) -> int | None:
    """How many pieces the folder's vocabulary has."""
    from sentencepiece import SentencePieceProcessor

    files = (folder / "tokenizer.model", folder / "tokenizer" / "tokenizer.model")
    file = next((file for file in files if file.is_file()), None)
    try:
        return SentencePieceProcessor(model_file=str(file)).vocab_size() if file else None
    except (RuntimeError, OSError):  # the tokenizer says what is wrong with it
        return None
