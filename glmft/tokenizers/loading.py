"""Find the tokenizer class of a family, and load the tokenizer of a folder."""

from pathlib import Path
from typing import Any

from glmft.errors import ConfigError
from glmft.family import family_of_folder
from glmft.tokenizers.base import FamilyTokenizer
from glmft.tokenizers.chatglm import ChatGLM6BTokenizer
from glmft.tokenizers.chatglm2 import ChatGLM2Tokenizer
from glmft.tokenizers.chatglm3 import ChatGLM3Tokenizer

TOKENIZERS: dict[str, type[FamilyTokenizer]] = {
    "glm": ChatGLM6BTokenizer,
    "glm2": ChatGLM2Tokenizer,
    "glm3": ChatGLM3Tokenizer,
}


class ChatGLMTokenizer(FamilyTokenizer):
    """The name that official folders record: `from_pretrained` returns the tokenizer of the family that a folder holds.

    Args:
        mode: the family, where the folder does not tell.
    """

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, mode: str | None = None, **kwargs: Any) -> FamilyTokenizer:
        return TOKENIZERS[family_of_folder(folder, mode)].from_pretrained(folder, *args, **kwargs)


def load_tokenizer(folder: str | Path, mode: str | None = None) -> FamilyTokenizer:
    """The tokenizer of a model folder.

    Args:
        folder: holds the sentencepiece model, or has it in a sub-folder `tokenizer`.
        mode: the family, where the files do not tell.
    """
    family = family_of_folder(folder, mode)
    kind = TOKENIZERS[family]
    name = kind.vocab_files_names["vocab_file"]
    places = [Path(folder), Path(folder) / "tokenizer"]
    place = next((p for p in places if (p / name).is_file()), None)
    if place is None:
        raise ConfigError(f"{folder}: holds no {name}; copy the sentencepiece model of the official folder there")
    return kind.from_pretrained(place)
