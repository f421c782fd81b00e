"""GLM-4-9B in its remote-code layout: byte-level tokens over tiktoken, each message behind a role token."""

import base64
import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from glmft.errors import ConfigError
from glmft.tokenizers.base import ROLES, FamilyTokenizer, Message
from glmft.tokenizers.chatglm4_tools import checked_tools, tools_text, without_null_properties
from glmft.tokenizers.templates import DEFAULT, shipped

# How text is split before its bytes are merged.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class ChatGLM4Tokenizer(FamilyTokenizer):
    """A token is its bytes; a special token is its name.

    A call and `apply_chat_template` read special tokens out of the text, as the official class does; `encode_text` and
    `chat_ids`, by which everything is trained and answered, never do.
    """

    family = "glm4"
    has_roles = True
    official_class = "ChatGLM4Tokenizer"
    special_tokens = (
        "<|endoftext|>",
        "[MASK]",
        "[gMASK]",
        "[sMASK]",
        "<sop>",
        "<eop>",
        *(f"<|{role}|>" for role in ROLES),
        *(f"<|{edge}_of_{kind}|>" for kind in ("image", "video") for edge in ("begin", "end")),
    )
    named_tokens: ClassVar[dict[str, str]] = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    more_tokens = ()
    opening = ""
    marks = special_tokens

    def __init__(self, vocab_file: str, **kwargs: Any):
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(vocab_file, **kwargs)
        self.role_ids = {role: self.special_ids[f"<|{role}|>"] for role in ROLES}
        self.end_id = self.role_ids["user"]  # a row ends as a turn does: with the next one's role

    def read_vocabulary(self) -> int:
        import tiktoken

        try:
            with open(self.vocab_file, "rb") as file:
                pairs = [line.split() for line in file]
            ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
            whole = sorted(ranks.values()) == list(range(len(pairs)))
            if not whole or any(bytes([byte]) not in ranks for byte in range(256)):
                raise ValueError
        except (ValueError, OSError):
            raise ConfigError(
                f"{self.vocab_file}: is no vocabulary of tiktoken (a line each of a token in base64 and its rank); "
                "copy the official one again"
            ) from None
        special = {token: len(ranks) + i for i, token in enumerate(self.special_tokens)}
        self.encoding = tiktoken.Encoding(
            "glm4", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special, explicit_n_vocab=None
        )
        return len(ranks)

    @property
    def vocab_size(self) -> int:
        """Without special tokens, as the official class counts."""
        return self.special_ids["<|endoftext|>"]

    def __len__(self) -> int:
        return self.vocab_size + len(self.special_tokens)

    def get_vocab(self) -> dict[Any, int]:
        return {self._convert_id_to_token(i): i for i in range(len(self))}

    def get_command(self, token: str) -> int:
        return self.special_ids[token]

    @property
    def stop_ids(self) -> list[int]:
        """The end of the text, and the roles that may speak after an answer."""
        return [self.eos_token_id, self.special_ids["<|user|>"], self.special_ids["<|observation|>"]]

    @property
    def prefix_ids(self) -> list[int]:
        return [self.special_ids["[gMASK]"], self.special_ids["<sop>"]]

    # ------------------------------------------------------------------------------------------------ text and ids

    def encode_text(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def disguised_marks(self, template: str) -> tuple[str, ...]:
        """None for the official form, which reads special tokens out of what users write."""
        return () if template == shipped(self.family)[DEFAULT] else self.marks

    def is_rendered(self, text: str) -> bool:
        return re.match(rf"\[gMASK\]<sop><\|({'|'.join(ROLES)})\|>", text) is not None

    def begins_as_rendered(self, ids: list[int]) -> bool:
        roles = {self.special_ids[f"<|{role}|>"] for role in ROLES}
        return super().begins_as_rendered(ids) and ids[2] in roles

    def tokenize(self, text: str, **kwargs: Any) -> list[bytes | str]:
        if self.is_rendered(text):
            return [self._convert_id_to_token(i) for i in self.rendered_ids(text)]
        return [self._convert_id_to_token(i) for i in self.encoding.encode(text, allowed_special="all")]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Also of one token's bytes, which would pass for a sequence. Raises KeyError for what is no token."""
        return self._convert_token_to_id(tokens) if isinstance(tokens, bytes) else super().convert_tokens_to_ids(tokens)

    def _convert_token_to_id(self, token: bytes | str) -> int:
        return self.encoding.encode_single_token(token)

    def _convert_id_to_token(self, index: int) -> bytes | str:
        if index in self.special_texts:
            return self.special_texts[index]
        return self.encoding.decode_single_token_bytes(index) if 0 <= index < self.vocab_size else ""

    def convert_tokens_to_string(self, tokens: Sequence[bytes | str]) -> str:
        """Text of tokens; bytes that are no UTF-8 are shown as U+FFFD."""
        parts = (token if isinstance(token, bytes) else token.encode() for token in tokens)
        return b"".join(parts).decode("utf-8", errors="replace")

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        if skip_special_tokens:
            ids = [i for i in ids if i not in self.special_texts]
        return self.convert_tokens_to_string([self._convert_id_to_token(i) for i in ids])

    # ------------------------------------------------------------------------------------------------ chats

    def build_single_message(self, role: str, metadata: str, message: str) -> list[int]:
        """Role token, metadata and a line break, then the message; each text is encoded by itself.

        Raises:
            ValueError: the role is none of `ROLES`.
        """
        return [self._role_id(role), *self.encode_text(f"{metadata}\n"), *self.encode_text(message)]

    def _role_id(self, role: Any) -> int:
        try:
            return self.role_ids[role]
        except (KeyError, TypeError):
            raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}") from None

    def message_parts(self, messages: Sequence[Message]) -> list[tuple[Message, list[int]]]:
        """Each message with the ids that it adds to a row; an answer that ends the row may be empty."""
        parts = [(message, self.message_ids(message)) for message in messages]
        if parts and not parts[-1][1] and messages[-1]["role"] == "assistant":
            parts[-1] = (messages[-1], [self.special_ids["<|assistant|>"], *self.body_ids(messages[-1])])
        return parts

    def body_ids(self, message: Message) -> list[int]:
        """What stands behind a role token: metadata, a line break and the content, encoded as one text.

        Of a call that was given by its `arguments` these are the content, as JSON.
        """
        arguments = message.get("arguments")
        content = message["content"] if arguments is None else json.dumps(arguments, ensure_ascii=False)
        return self.encode_text(f"{message.get('metadata') or ''}\n{content}")

    def message_ids(self, message: Message) -> list[int]:
        """What a message adds to a row, perhaps nothing: the official template leaves out one without content.

        A message may have `metadata` (the function that an assistant calls; the content is its arguments then) and
        `tools`, which a system message before it describes.

        Raises:
            ValueError: a role or a tool that the template has no words for.
        """
        role = self._role_id(message["role"])
        about_tools = self._tools_ids(message) if "tools" in message else []
        return [*about_tools, role, *self.body_ids(message)] if message.get("content") else about_tools

    def _tools_ids(self, message: Message) -> list[int]:
        tools = checked_tools(message["tools"])
        if not message.get("null_properties"):
            tools = [without_null_properties(tool) for tool in tools]
        return [self.special_ids["<|system|>"], *self.encode_text(f"\n{tools_text(tools)}")]
