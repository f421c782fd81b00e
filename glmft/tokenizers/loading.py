"""Find the tokenizer class of a family, and load the tokenizer of a folder."""

from pathlib import Path

from glmft.errors import ConfigError
from glmft.family import family_of_folder
from glmft.tokenizers.base import ChatGLMTokenizer
from glmft.tokenizers.chatglm import ChatGLM6BTokenizer
from glmft.tokenizers.chatglm2 import ChatGLM2Tokenizer
from glmft.tokenizers.chatglm3 import ChatGLM3Tokenizer

TOKENIZERS: dict[str, type[ChatGLMTokenizer]] = {
    "glm": ChatGLM6BTokenizer,
    "glm2": ChatGLM2Tokenizer,
    "glm3": ChatGLM3Tokenizer,
}


def load_tokenizer(folder: str | Path, mode: str | None = None) -> ChatGLMTokenizer:
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
