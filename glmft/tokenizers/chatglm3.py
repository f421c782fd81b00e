"""ChatGLM3-6B: each message stands behind a role token."""

import json
import re
from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding

from glmft.tokenizers.base import ROLES, FamilyTokenizer, Message

TOOLS_SENTENCE = "Answer the following questions as best as you can. You have access to the following tools:"


class ChatGLM3Tokenizer(FamilyTokenizer):
    """
    Args:
        encode_special_tokens: `tokenize` and calls of the tokenizer read role tokens out of the text, as the official
            class does then. Prompts for chat and training are never made that way.
    """

    family = "glm3"
    has_roles = True
    special_tokens = (*FamilyTokenizer.special_tokens, *(f"<|{role}|>" for role in ROLES))
    marks = (*(f"<|{role}|>" for role in ROLES), "</s>")

    def __init__(self, vocab_file: str, encode_special_tokens: bool = False, **kwargs: Any):
        self.encode_special_tokens = encode_special_tokens
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(vocab_file, **kwargs)

    @property
    def stop_ids(self) -> list[int]:
        """Also the tokens that open the next message: inside a dialogue an answer ends with one of them."""
        return [self.eos_token_id, self.special_ids["<|user|>"], self.special_ids["<|observation|>"]]

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        if not self.encode_special_tokens or self.is_rendered(text):
            return super().tokenize(text)
        parts = re.split(f"({'|'.join(re.escape(f'<|{role}|>') for role in ROLES)})", text)
        return [
            piece
            for i, part in enumerate(parts)
            if part
            for piece in ([part] if i % 2 else self.sp.encode_as_pieces(part))
        ]

    def _convert_id_to_token(self, index: int) -> str:
        return self.special_texts.get(index) or super()._convert_id_to_token(index)

    def build_single_message(self, role: str, metadata: str, message: str) -> list[int]:
        """Role token, metadata and a line break, then the message; each text is encoded by itself.

        Raises:
            ValueError: the role is none of `ROLES`.
        """
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
        return [self.special_ids[f"<|{role}|>"], *self.encode_text(f"{metadata}\n"), *self.encode_text(message)]

    def build_chat_input(
        self, query: str, history: Sequence[Message] | None = None, role: str = "user"
    ) -> BatchEncoding:
        """The official chat input as tensors [1, s]: the history, the query, and the assistant's role token."""
        ids = self.chat_ids([*(history or []), {"role": role, "content": query}])
        return self.pad({"input_ids": [ids]}, return_tensors="pt")

    def message_parts(self, messages: Sequence[Message]) -> list[tuple[Message, list[int]]]:
        """Each message with the ids that it adds to a row."""
        return [(message, self.message_ids(message)) for message in messages]

    def body_ids(self, message: Message) -> list[int]:
        """What stands behind an assistant's role token."""
        return self.build_single_message("assistant", message.get("metadata") or "", message["content"])[1:]

    def message_ids(self, message: Message) -> list[int]:
        """A message may have `metadata` (an assistant's tool) and, of role system, `tools`; then without `content` the
        official sentence about tools stands before them.
        """
        content = message.get("content") or ""
        if message["role"] == "system" and "tools" in message:
            head = TOOLS_SENTENCE if message.get("content") is None else message["content"]
            content = f"{head}\n{json.dumps(message['tools'], indent=4, ensure_ascii=False)}"
        return self.build_single_message(message["role"], message.get("metadata") or "", content)

    def own_settings(self) -> dict[str, Any]:
        return super().own_settings() | ({"encode_special_tokens": True} if self.encode_special_tokens else {})
