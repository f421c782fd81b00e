"""What the families' tokenizers share: ids straight from sentencepiece, special tokens by id, left padding."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizer
from transformers.utils import PaddingStrategy

from glmft.errors import ConfigError, one_line
from glmft.family import FAMILY_KEY
from glmft.reading import read_json_if_there
from glmft.tokenizers.files import check_tokenizer_files, check_vocabulary
from glmft.tokenizers.rendering import ChatTemplates
from glmft.tokenizers.templates import is_superseded

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "observation")  # of the families that have any

PADDED = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "special_tokens_mask")


class FamilyTokenizer(ChatTemplates, PreTrainedTokenizer):
    """What the tokenizers of the families share.

    Text comes in by two ways. A call of the tokenizer is the official one, quirks included, but for text that a chat
    template made, which is read back to the template's ids. `encode_text` and `chat_ids` put special tokens in by id
    alone: what a user writes stays text.

    Args:
        vocab_file: the sentencepiece model.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask", "position_ids"]
    padding_side = "left"
    recorded: ClassVar[dict[str, Any]] = {}  # the tokenizer_config.json that an instance was loaded with
    # Those that stand behind the sentencepiece vocabulary, in the order of their ids.
    special_tokens: tuple[str, ...] = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
    named_tokens: ClassVar[dict[str, str]] = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    more_tokens: tuple[str, ...] = ("<s>",)  # that folders name, too
    family: str
    has_roles: ClassVar[bool] = False  # whether each message stands behind a role token, and a row may be a dialogue
    official_class = "ChatGLMTokenizer"  # the name that official folders record

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> "FamilyTokenizer":
        """Raises ConfigError for a special token that is to be another than the family's, or files that are damaged."""
        for name, token in cls.named_tokens.items():
            if str(kwargs.get(name, token)) != token:
                raise ConfigError(
                    f"{name}={str(kwargs[name])!r}: is {token} for every {cls.family} model, whose ids are fixed; "
                    f"to use another token of the vocabulary in one process, set tokenizer.{name} after loading"
                )
        check_tokenizer_files(Path(folder), cls)
        try:
            tokenizer = super().from_pretrained(folder, *args, **kwargs)
        except ConfigError:
            raise
        except Exception as error:  # whatever files that do not belong together make transformers raise
            raise ConfigError(f"{folder}: the tokenizer cannot be loaded ({one_line(error)})") from None
        tokenizer.recorded = read_json_if_there(Path(folder) / "tokenizer_config.json")
        return tokenizer

    def __init__(self, vocab_file: str, padding_side: str = "left", **kwargs: Any):
        check_vocabulary(Path(vocab_file))
        self.vocab_file = str(vocab_file)
        behind = self.read_vocabulary()
        self.special_ids = {token: behind + i for i, token in enumerate(self.special_tokens)}
        self.special_texts = {i: token for token, i in self.special_ids.items()}
        super().__init__(padding_side=padding_side, **{**kwargs, **self.named_tokens})
        self.end_id: int = self.eos_token_id  # transformers looks its own attribute up by name, slowly, at every use
        self.take_templates()

    def read_vocabulary(self) -> int:
        """Open `vocab_file`; the first id behind it. Raises ConfigError if it is of another kind."""
        try:
            self.sp = SentencePieceProcessor(model_file=self.vocab_file)
        except (RuntimeError, OSError):
            raise ConfigError(f"{self.vocab_file}: is no sentencepiece model; copy the official one again") from None
        return self.sp.vocab_size()

    @property
    def vocab_size(self) -> int:
        return self.sp.vocab_size() + len(self.special_tokens)

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Every token's id, special ones too, which `convert_ids_to_tokens` gives no name, as the official code."""
        return {self.sp.id_to_piece(i): i for i in range(self.sp.vocab_size())} | self.special_ids

    def get_added_vocab(self) -> dict[str, int]:
        """The special tokens."""
        return self.special_ids | {token: self._convert_token_to_id(token) for token in self.named_tokens.values()}

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        known = {*self.special_ids, *self.named_tokens.values(), *self.more_tokens}
        unknown = [str(token) for token in new_tokens if str(token) not in known]
        if unknown:
            raise ConfigError(f"tokens {unknown} cannot be added: the ids behind the vocabulary are the model's own")
        return 0

    def get_command(self, token: str) -> int:
        """Id of a special token by its name, as the official code calls it."""
        official = {"<bos>": 1, "<eos>": 2, "<pad>": 0}
        return official[token] if token in official else self._convert_token_to_id(token)

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer."""
        return [self.eos_token_id]

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        if self.is_rendered(text):
            return [self.special_texts.get(i) or self.sp.id_to_piece(i) for i in self.rendered_ids(text)]
        return self.sp.encode_as_pieces(text)

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text alone: no special token is added, and none is read out of the text."""
        return self.sp.encode(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.special_ids[token] if token in self.special_ids else self.sp.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        if index in self.special_texts or index <= 2 or index >= self.vocab_size:
            return ""
        return self.sp.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.sp.decode_pieces(tokens)

    @property
    def prefix_ids(self) -> list[int]:
        """[gMASK] sop, which every row starts with."""
        return [self.special_ids["[gMASK]"], self.special_ids["sop"]]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """[gMASK] sop A, or [gMASK] sop A B </s>. A rendered chat has its special tokens already."""
        if token_ids_1 is None and self.begins_as_rendered(token_ids_0):
            return list(token_ids_0)
        ids = self.prefix_ids + list(token_ids_0)
        return ids if token_ids_1 is None else ids + list(token_ids_1) + [self.eos_token_id]

    def begins_as_rendered(self, ids: list[int]) -> bool:
        return len(ids) > 2 and list(ids[:2]) == self.prefix_ids

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for a special token, as transformers' method, in the row that `build_inputs_with_special_tokens` makes."""
        special = set(self.get_added_vocab().values())
        if already_has_special_tokens:
            return [int(i in special) for i in token_ids_0]
        row = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        return [int(i in special) for i in row]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def _pad(
        self,
        encoded_inputs: dict[str, Any],
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> dict[str, Any]:
        """Also gives position_ids: those of the row without padding, and 0 on padding."""
        ids = encoded_inputs["input_ids"]
        encoded_inputs.setdefault("attention_mask", [1] * len(ids))
        encoded_inputs.setdefault("position_ids", self.positions(ids))
        if padding_strategy == PaddingStrategy.LONGEST:
            max_length = len(ids)
        if padding_strategy == PaddingStrategy.DO_NOT_PAD or max_length is None:
            return encoded_inputs
        if pad_to_multiple_of:
            max_length = -(-max_length // pad_to_multiple_of) * pad_to_multiple_of
        missing = max_length - len(ids)
        left = (padding_side or self.padding_side) == "left"

        def padded(row: list[Any], filler: int) -> list[Any]:
            if row and isinstance(row[0], list):
                return [padded(part, filler) for part in row]
            return [filler] * missing + list(row) if left else list(row) + [filler] * missing

        fillers = {"input_ids": self.pad_token_id, "token_type_ids": self.pad_token_type_id, "special_tokens_mask": 1}
        for key in PADDED:
            if key in encoded_inputs:
                encoded_inputs[key] = padded(encoded_inputs[key], fillers.get(key, 0))
        return encoded_inputs

    def positions(self, ids: list[int]) -> list[Any]:
        """Position ids of a row without padding: 0, 1, ..."""
        return list(range(len(ids)))

    def chat_ids(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """The official prompt of a conversation.

        Args:
            messages: `role` and `content` each.
            add_generation_prompt: end with the cue of the assistant's answer.

        Raises:
            ValueError: a conversation that the family cannot express.
        """
        ids = [*self.prefix_ids, *(i for message in messages for i in self.message_ids(message))]
        return [*ids, self.special_ids["<|assistant|>"]] if add_generation_prompt else ids

    def message_ids(self, message: Message) -> list[int]:
        """What a message adds to a row, in a family with roles. Raises ValueError."""
        raise NotImplementedError

    def check_roles(self, messages: Sequence[Message]) -> None:
        """Raises ValueError if a family without roles cannot express whose turn it is."""
        rounds_of(messages, self.family)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        target = Path(save_directory) / (
            (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        )
        if Path(self.vocab_file).resolve() != target.resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> tuple[str, ...]:
        """The vocabulary, and the tokenizer_config.json that was loaded, under the official class name.

        Nothing is added to it that current transformers would: the official classes refuse to have their `eos_token`
        set. The chat templates go into files of their own.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {**self.recorded, **self.own_settings(), "tokenizer_class": self.official_class}
        if "chat_template" in config and not is_superseded(str(config["chat_template"])):
            config["chat_template"] = self.get_chat_template()
        text = json.dumps({**config, FAMILY_KEY: self.family}, ensure_ascii=False, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        templates = self.write_templates(folder)
        return (str(folder / "tokenizer_config.json"), *templates, *self.save_vocabulary(str(folder)))

    def own_settings(self) -> dict[str, Any]:
        """What tokenizer_config.json must say so that loading it gives the same tokenizer."""
        return {} if self.padding_side == "left" else {"padding_side": self.padding_side}


def rounds_of(messages: Sequence[Message], family: str) -> tuple[list[tuple[str, str]], str | None]:
    """Rounds of (question, answer), and the question that is still open, if the last message is one.

    Raises:
        ValueError: messages that are not of user and assistant in turn.
    """
    for i, message in enumerate(messages):
        if message.get("role") != ("assistant" if i % 2 else "user"):
            mend = "; put its text into the first question" if message.get("role") == "system" else ""
            raise ValueError(
                f"message {i} has role {message.get('role')!r}; {family} takes user and assistant in turn{mend}"
            )
    texts = [message.get("content") or "" for message in messages]
    if not texts:
        raise ValueError("the conversation is empty")
    rounds = list(zip(texts[::2], texts[1::2], strict=False))
    return rounds, texts[-1] if len(texts) % 2 else None
