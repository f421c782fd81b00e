"""ChatGLM-6B: line breaks, tabs and runs of blanks are tokens; [gMASK] and <sop> stand behind the prompt."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import BatchEncoding

from glmft.reading import read_json_if_there
from glmft.tokenizers.base import FamilyTokenizer, Message, rounds_of
from glmft.tokenizers.rendering import DISGUISE

LONGEST_BLANK = 80
# The first revision of the official folder: 20,000 ids of image tokens stand before the vocabulary.
IMAGE_TOKENS, VOCABULARY_WITH_IMAGES = 20000, 150528


class ChatGLM6BTokenizer(FamilyTokenizer):
    """
    Args:
        num_image_tokens: ids before the vocabulary, `<image_0>` and on.
        do_lower_case: lower-case the text of calls.
        remove_space: collapse white space in the text of calls.
    """

    vocab_files_names = {"vocab_file": "ice_text.model"}
    family = "glm"
    special_tokens = ()
    named_tokens: ClassVar[dict[str, str]] = {
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "[MASK]",
    }
    gmask_token = "[gMASK]"
    end_token = "</s>"
    more_tokens = (gmask_token, end_token)
    opening = ""
    marks = ("[gMASK]", "<sop>", "<eop>")

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> "ChatGLM6BTokenizer":
        recorded = {**read_json_if_there(Path(folder) / "tokenizer_config.json"), **kwargs}
        if "num_image_tokens" not in recorded:
            size = read_json_if_there(Path(folder) / "config.json").get("vocab_size")
            kwargs["num_image_tokens"] = IMAGE_TOKENS if size == VOCABULARY_WITH_IMAGES else 0
        return super().from_pretrained(folder, *args, **kwargs)

    def __init__(
        self,
        vocab_file: str,
        num_image_tokens: int = 0,
        do_lower_case: bool = False,
        remove_space: bool = False,
        **kwargs: Any,
    ):
        self.num_image_tokens, self.do_lower_case, self.remove_space = num_image_tokens, do_lower_case, remove_space
        for name in ("gmask_token", "end_token", "extra_special_tokens"):
            kwargs.pop(name, None)
        kwargs.setdefault("clean_up_tokenization_spaces", True)
        super().__init__(
            vocab_file,
            num_image_tokens=num_image_tokens,
            do_lower_case=do_lower_case,
            remove_space=remove_space,
            **kwargs,
        )
        self.special_texts = {self._convert_token_to_id(t): t for t in (*self.named_tokens.values(), self.gmask_token)}

    @property
    def vocab_size(self) -> int:
        return self.num_image_tokens + self.sp.vocab_size()

    @property
    def gmask_token_id(self) -> int:
        return self._convert_token_to_id(self.gmask_token)

    @property
    def end_token_id(self) -> int:
        return self._convert_token_to_id(self.end_token)

    def own_settings(self) -> dict[str, Any]:
        tokens = {**self.named_tokens, "gmask_token": self.gmask_token, "end_token": self.end_token}
        names = ("num_image_tokens", "do_lower_case", "remove_space")
        return {**super().own_settings(), **tokens, **{name: getattr(self, name) for name in names}}

    def get_command(self, token: str) -> int:
        return self._convert_token_to_id(token)

    # ------------------------------------------------------------------------------------------------ text to ids

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Pieces; the written forms of `named_tokens` are those tokens, and white space beside them is dropped."""
        if self.is_rendered(text):
            return [self._convert_id_to_token(i) for i in self.rendered_ids(text)]
        written = "|".join(re.escape(token) for token in self.named_tokens.values())
        parts, pieces = re.split(f"({written})", text), []
        for i, part in enumerate(parts):
            if i % 2:
                pieces.append(part)
                continue
            part = part.lstrip() if i > 0 else part
            part = part.rstrip() if i < len(parts) - 1 else part
            pieces += self.sp.encode_as_pieces(self._normalised(part)) if part else []
        return pieces

    def _normalised(self, text: str) -> str:
        text = " ".join(text.split()) if self.remove_space else text
        return as_written(text.lower() if self.do_lower_case else text)

    def disguised_marks(self, template: str) -> tuple[str, ...]:
        return (self.gmask_token, *self.named_tokens.values())

    def is_rendered(self, text: str) -> bool:
        """Nothing opens a chat of this family; one without the answer's cue is told by what is disguised in it."""
        return "[gMASK]<sop>" in text or DISGUISE in text

    def encode_text(self, text: str) -> list[int]:
        return [i + self.num_image_tokens for i in self.sp.encode(as_written(text))]

    def _convert_token_to_id(self, token: str) -> int:
        image = re.fullmatch(r"<image_(\d+)>", token)
        return int(image[1]) if image else self.sp.piece_to_id(token) + self.num_image_tokens

    # ------------------------------------------------------------------------------------------------ ids to text

    def get_vocab(self) -> dict[str, int]:
        return {self._convert_id_to_token(i): i for i in range(self.vocab_size)}

    def get_added_vocab(self) -> dict[str, int]:
        return {token: self._convert_token_to_id(token) for token in (*self.named_tokens.values(), self.gmask_token)}

    def _convert_id_to_token(self, index: int) -> str:
        if index < self.num_image_tokens:
            return f"<image_{index}>"
        if index >= self.vocab_size:  # the embedding has more rows
            return ""
        return self.sp.id_to_piece(index - self.num_image_tokens)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        left_out = {self.pad_token_id, *(self.all_special_ids if skip_special_tokens else [])}
        text = self.convert_tokens_to_string([self._convert_id_to_token(i) for i in ids if i not in left_out])
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return self.clean_up_tokenization(text) if clean else text

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        text = self.sp.decode_pieces(tokens).replace("<n>", "\n").replace("<|tab|>", "\t")
        return re.sub(r"<\|blank_(\d+)\|>", lambda match: " " * int(match[1]), text)

    # ------------------------------------------------------------------------------------------------ rows and chats

    @property
    def prefix_ids(self) -> list[int]:
        """[gMASK] <sop>, which stand between prompt and answer."""
        return [self.gmask_token_id, self.bos_token_id]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """A [gMASK] <sop>, or A [gMASK] <sop> B <eop>. A rendered chat has its special tokens already."""
        if token_ids_1 is None and self.prefix_ids in (list(token_ids_0[i : i + 2]) for i in range(len(token_ids_0))):
            return list(token_ids_0)
        ids = list(token_ids_0) + self.prefix_ids
        return ids if token_ids_1 is None else ids + list(token_ids_1) + [self.eos_token_id]

    def prepare_for_model(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        """As transformers' method; one row without padding has no position_ids, as in the official class.

        The model reads them off the ids, and pipelines, which pad single rows themselves, cannot pad two dimensions.
        """
        encoded = super().prepare_for_model(*args, **kwargs)
        if kwargs.get("padding") in (None, False, "do_not_pad") and kwargs.get("max_length") is None:
            encoded.pop("position_ids", None)
        return encoded

    def positions(self, ids: list[int]) -> list[list[int]]:
        """[2, s]: place and block. A written [MASK] is taken before [gMASK], as the official tokenizer does."""
        length = len(ids)
        start = ids.index(self.bos_token_id) if self.bos_token_id in ids else length
        gap = next((ids.index(token) for token in (self.mask_token_id, self.gmask_token_id) if token in ids), None)
        places = [i if i < start or gap is None else gap for i in range(length)]
        return [places, [max(0, i - start + 1) for i in range(length)]]

    def build_prompt(self, query: str, history: Sequence[tuple[str, str]] | None = None) -> str:
        """The official prompt text: the bare question, or numbered rounds and the answer's cue."""
        if not history:
            return query
        rounds = "".join(f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(history))
        return f"{rounds}[Round {len(history)}]\n问：{query}\n答："

    def chat_ids(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        rounds, query = rounds_of(messages, self.family)
        if query is None:
            (last, answer), rounds = rounds[-1], rounds[:-1]
            prompt = self.encode_text(self.build_prompt(last, rounds))
            return prompt + self.prefix_ids + self.encode_text(answer)
        return self.encode_text(self.build_prompt(query, rounds)) + (self.prefix_ids if add_generation_prompt else [])


def as_written(text: str) -> str:
    """Line breaks, tabs and runs of 2 to 80 blanks in the form that the sentencepiece model knows as pieces."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    return re.sub(f" {{2,{LONGEST_BLANK}}}", lambda match: f"<|blank_{len(match[0])}|>", text)
