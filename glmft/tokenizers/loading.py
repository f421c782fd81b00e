"""Find the tokenizer class of a family, and load the tokenizer of a folder."""

from pathlib import Path
from typing import Any

from glmft.errors import ConfigError
from glmft.family import family_of_folder, is_native
from glmft.reading import read_json_if_there
from glmft.schema import is_whole
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


def load_tokenizer(
    folder: str | Path, mode: str | None = None, config: Any = None
) -> FamilyTokenizer | NativeTokenizer:
    """The tokenizer of a model folder: the family's, or in transformers' own layout the folder's.

    Args:
        folder: holds the vocabulary, or has it in a sub-folder `tokenizer`.
        mode: the family, where the files do not tell.
        config: the model's, whose ids must be the tokenizer's; None: only the tokenizer is wanted.
    """
    family = family_of_folder(folder, mode)
    if is_native(folder):
        tokenizer = NativeTokenizer.from_pretrained(folder)
        require_ids(tokenizer, read_json_if_there(Path(folder) / "config.json"), folder)
        return tokenizer
    kind = TOKENIZERS[family]
    name = kind.vocab_files_names["vocab_file"]
    places = [Path(folder), Path(folder) / "tokenizer"]
    place = next((p for p in places if (p / name).is_file()), None)
    if place is None:
        raise ConfigError(f"{folder}: holds no {name}; copy the vocabulary of the official folder there")
    tokenizer = kind.from_pretrained(place)
    require_ids(tokenizer, read_json_if_there(Path(folder) / "config.json"), folder)
    if config is not None and family == "glm":
        require_same_ids(tokenizer, config, folder)
    return tokenizer


def require_ids(tokenizer: Any, config: dict[str, Any], folder: str | Path) -> None:
    """Raises ConfigError if the model of the same folder has no embedding for an id."""
    size = config.get("padded_vocab_size", config.get("vocab_size"))
    if is_whole(size) and len(tokenizer) > size:
        raise ConfigError(f"{folder}: the tokenizer has {len(tokenizer)} ids, the model {size}; copy both anew")


def require_same_ids(tokenizer: Any, config: Any, folder: str | Path) -> None:
    """Raises ConfigError if a ChatGLM-6B has other ids for the tokens that its positions hang on than the tokenizer.

    Args:
        config: the model's.
    """
    for key, token in (("bos_token_id", "<sop>"), ("gmask_token_id", "[gMASK]"), ("mask_token_id", "[MASK]")):
        there = tokenizer.convert_tokens_to_ids(token)
        if getattr(config, key) != there:
            raise ConfigError(
                f"{folder}: {key} is {getattr(config, key)} in config.json, {there} in the tokenizer; copy both anew"
            )
