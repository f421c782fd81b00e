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

Message = dict[str, Any]


class FamilyTokenizer(PreTrainedTokenizer):
    """What the tokenizers of the families share.

    Text comes in by two ways. A call of the tokenizer is the official one, quirks included. `encode_text` and
    `chat_ids` put special tokens in by id alone: what a user writes stays text.

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
        return {self._convert_id_to_token(i): i for i in range(self.vocab_size)}

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
        """[gMASK] sop A, or [gMASK] sop A B </s>."""
        ids = self.prefix_ids + list(token_ids_0)
        return ids if token_ids_1 is None else ids + list(token_ids_1) + [self.eos_token_id]

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

        for key, filler in (("input_ids", self.pad_token_id), ("attention_mask", 0), ("position_ids", 0)):
            encoded_inputs[key] = padded(encoded_inputs[key], filler)
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
        raise NotImplementedError

    def check_roles(self, messages: Sequence[Message]) -> None:
        """Raises ValueError if a family without roles cannot express whose turn it is."""
        rounds_of(messages, self.family)

    def with_tools(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> Sequence[Message]:
        """The messages with descriptions of tools in them. Raises ValueError for a family that knows none."""
        if tools:
            raise ValueError(f"{self.family} knows no tools; use a glm3 model")
        return messages

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """As transformers' method of this name, with the official prompt of the family in place of a template.

        Args:
            conversation: messages of `role` and `content`, or several such lists.
            tools: descriptions of functions, for families that know tools.
            tokenize: give ids; if False, the text of them, in which special tokens are written out.
        """
        batched = bool(conversation) and not isinstance(conversation[0], dict)
        chats = conversation if batched else [conversation]
        chats = [self.with_tools(chat, tools) for chat in chats]
        if not tokenize:
            texts = [self.template_text(chat, add_generation_prompt) for chat in chats]
            return texts if batched else texts[0]
        rows = [self.template_ids(chat, add_generation_prompt) for chat in chats]
        together = batched or return_tensors is not None
        encoded = self.pad(
            {"input_ids": rows if together else rows[0]}, padding, max_length, return_tensors=return_tensors
        )
        return encoded if return_dict else encoded["input_ids"]

    def template_ids(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        """What `apply_chat_template` gives."""
        return self.chat_ids(messages, add_generation_prompt)

    def template_text(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text of it."""
        return self.written(self.template_ids(messages, add_generation_prompt))

    def written(self, ids: Sequence[int]) -> str:
        """The text of ids, with special tokens written out."""
        text, plain = "", []
        for i in [*ids, None]:
            if i is not None and i not in self.special_texts:
                plain.append(i)
            else:
                text += self.decode(plain) + self.special_texts.get(i, "")
                plain = []
        return text

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        target = Path(save_directory) / (
            (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        )
        if Path(self.vocab_file).resolve() != target.resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> tuple[str, ...]:
        """The vocabulary, and the tokenizer_config.json that was loaded, under the official class name.

        Nothing is added that current transformers would: the official classes refuse to have their `eos_token` set.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {**self.recorded, **self.own_settings(), "tokenizer_class": self.official_class}
        text = json.dumps({**config, FAMILY_KEY: self.family}, ensure_ascii=False, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        return (str(folder / "tokenizer_config.json"), *self.save_vocabulary(str(folder)))

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
            raise ValueError(f"message {i} has role {message.get('role')!r}; {family} takes user and assistant in turn")
    texts = [message.get("content") or "" for message in messages]
    if not texts:
        raise ValueError("the conversation is empty")
    rounds = list(zip(texts[::2], texts[1::2], strict=False))
    return rounds, texts[-1] if len(texts) % 2 else None
