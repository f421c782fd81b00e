"""Find the tokenizer class of a family, and load the tokenizer of a folder."""

from pathlib import Path
from typing import Any

from glmft.errors import ConfigError
from glmft.family import family_of_folder, is_native
from glmft.tokenizers.base import FamilyTokenizer
from glmft.tokenizers.chatglm import ChatGLM6BTokenizer
from glmft.tokenizers.chatglm2 import ChatGLM2Tokenizer
from glmft.tokenizers.chatglm3 import ChatGLM3Tokenizer
from glmft.tokenizers.chatglm4 import ChatGLM4Tokenizer
from glmft.tokenizers.native import NativeTokenizer

TOKENIZERS: dict[str, type[FamilyTokenizer]] = {
    "glm": ChatGLM6BTokenizer,
    "glm2": ChatGLM2Tokenizer,
    "glm3": ChatGLM3Tokenizer,
    "glm4": ChatGLM4Tokenizer,
}


class ChatGLMTokenizer(FamilyTokenizer):
    """The name that official folders record: `from_pretrained` returns the tokenizer of the family that a folder holds.

    Args:
        mode: the family, where the folder does not tell.
    """

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, mode: str | None = None, **kwargs: Any) -> FamilyTokenizer:
        return TOKENIZERS[family_of_folder(folder, mode)].from_pretrained(folder, *args, **kwargs)


def load_tokenizer(folder: str | Path, mode: str | None = None) -> FamilyTokenizer | NativeTokenizer:
    """The tokenizer of a model folder: the family's, or in transformers' own layout the folder's.

    Args:
        folder: holds the vocabulary, or has it in a sub-folder `tokenizer`.
        mode: the family, where the files do not tell.
    """
    family = family_of_folder(folder, mode)
    if is_native(folder):
        return NativeTokenizer.from_pretrained(folder)
    kind = TOKENIZERS[family]
    name = kind.vocab_files_names["vocab_file"]
    places = [Path(folder), Path(folder) / "tokenizer"]
    place = next((p for p in places if (p / name).is_file()), None)
    if place is None:
        raise ConfigError(f"{folder}: holds no {name}; copy the vocabulary of the official folder there")
    return kind.from_pretrained(place)
