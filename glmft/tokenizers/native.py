"""GLM-4 in transformers' own layout: the folder's own fast tokenizer and chat template.

A conversation is rendered by the template, whatever it does with it; what stands behind which role is then read off the
role tokens. Text that looks like a special token is disguised while the template runs, so that it stays text.
"""

import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from glmft.errors import ConfigError, one_line
from glmft.reading import is_file
from glmft.tokenizers.base import ROLES, Message
from glmft.tokenizers.chatglm4_tools import checked_tools
from glmft.tokenizers.files import check_tokenizer_files
from glmft.tokenizers.rendering import disguised, undisguised

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)


class NativeTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer with what data and generation ask of the families' tokenizers.

    Calls and `apply_chat_template` are transformers' own.
    """

    family = "glm4"
    has_roles = True
    model_input_names = ["input_ids", "attention_mask"]

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> "NativeTokenizer":
        """Raises ConfigError for a folder without tokenizer.json, chat template, or GLM-4's role tokens."""
        folder = Path(folder)
        if not is_file(folder / "tokenizer.json"):
            raise ConfigError(f"{folder}: holds no tokenizer.json; copy it from the official folder")
        check_tokenizer_files(folder, cls)
        try:
            tokenizer = super().from_pretrained(folder, *args, padding_side="left", **kwargs)
        except Exception as error:  # whatever a torn file makes the library raise
            raise ConfigError(
                f"{folder / 'tokenizer.json'}: is no readable tokenizer ({one_line(error)}); copy it again"
            ) from None
        tokenizer.read_special_tokens(folder)
        return tokenizer

    def read_special_tokens(self, folder: Path) -> None:
        """Look up what templates are read by."""
        self.vocab_file = str(folder / "tokenizer.json")
        self.special_texts = {i: token.content for i, token in self.added_tokens_decoder.items() if token.special}
        self.special_ids = {text: i for i, text in self.special_texts.items()}
        missing = [
            name for name in (*(f"<|{role}|>" for role in ROLES), "<|endoftext|>") if name not in self.special_ids
        ]
        if missing:
            raise ConfigError(f"{folder}: its tokenizer has no special tokens {', '.join(missing)}; it is not GLM-4's")
        if not self.chat_template:
            raise ConfigError(f"{folder}: its tokenizer has no chat template; copy the official folder's")
        if self.pad_token is None:
            self.pad_token = "<|endoftext|>"
        if self.eos_token is None:
            self.eos_token = "<|endoftext|>"
        self.role_ids = {self.special_ids[f"<|{role}|>"]: role for role in ROLES}
        self.end_id = self.special_ids["<|user|>"]
        self.special_pattern = re.compile(f"({'|'.join(map(re.escape, self.special_ids))})")
        self.prefix_ids = self._prefix_of_template(folder)

    def _prefix_of_template(self, folder: Path) -> list[int]:
        """What the template starts every row with. Raises ConfigError for one that is not of GLM-4's kind."""
        try:
            parts = self._split_at_roles(self._rendered([{"role": "user", "content": "你好"}], True))
        except ValueError as error:
            raise ConfigError(f"{folder}: {error}; copy the official folder's chat template") from None
        if [self.role_ids[part[0]] for part in parts[1:]] != ["user", "assistant"]:
            raise ConfigError(f"{folder}: its chat template does not put <|user|> and <|assistant|> before messages")
        return parts[0]

    @property
    def stop_ids(self) -> list[int]:
        return [self.special_ids[name] for name in ("<|endoftext|>", "<|user|>", "<|observation|>")]

    def get_command(self, token: str) -> int:
        return self.special_ids[token]

    def positions(self, ids: list[int]) -> list[int]:
        """Position ids of a row without padding."""
        return list(range(len(ids)))

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text alone: no special token is added, and none is read out of the text."""
        if not self._tokenizer.encode_special_tokens:  # a change is refused while another thread encodes
            self._tokenizer.encode_special_tokens = True
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    # ------------------------------------------------------------------------------------------------ chats

    def chat_ids(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """What the folder's template makes of a conversation. Raises ValueError for what it cannot express."""
        return self._rendered(messages, add_generation_prompt)

    def message_parts(self, messages: Sequence[Message]) -> list[tuple[Message, list[int]]]:
        """The messages as the template puts them, with the ids of each from its role token on.

        Raises:
            ValueError: the template leaves out an answer, or part of one.
        """
        left = defaultdict(list)
        for message in messages:
            left[message["role"]].append(message)
        parts = []
        for part in self._split_at_roles(self._rendered(messages))[1:]:
            role = self.role_ids[part[0]]
            whose = left[role].pop(0) if left[role] and role != "system" else {"role": role, "loss": False}
            parts.append((whose, part))
        if left["assistant"] or left["observation"]:
            raise ValueError("the folder's chat template leaves out a message; an answer or observation may be empty")
        for message, part in parts:
            thought = str(message.get("content", "")).partition("</think>")
            if message["role"] == "assistant" and thought[1] and "</think>" not in self.decode(part):
                raise ValueError("the folder's chat template leaves thoughts out of answers, so they cannot be learned")
        return parts

    def body_ids(self, message: Message) -> list[int]:
        """What stands behind an assistant's role token."""
        return self.message_parts([{"role": "user", "content": "你好"}, {**message, "role": "assistant"}])[-1][1][1:]

    def _rendered(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
        tools = [tool for message in messages if "tools" in message for tool in checked_tools(message["tools"])]
        if not self._template_reads_tools_of_messages:
            messages = [message for message in messages if "content" in message]
        marks = tuple(self.special_ids)
        hidden = [disguised(_as_template_takes(message), marks) for message in messages]
        try:
            text = self.apply_chat_template(
                hidden,
                tools=disguised(tools, marks) or None,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except (TemplateError, TypeError, OverflowError) as error:
            raise ValueError(f"the folder's chat template fails ({one_line(error)})") from None
        ids: list[int] = []
        for i, piece in enumerate(self.special_pattern.split(text)):
            ids += [self.special_ids[piece]] if i % 2 else self.encode_text(undisguised(piece))
        return ids

    @property
    def _template_reads_tools_of_messages(self) -> bool:
        return re.search(r"""\w\[['"]tools['"]\]|\w\.tools\b""", str(self.chat_template)) is not None

    def _split_at_roles(self, ids: list[int]) -> list[list[int]]:
        """What stands before the first role token, then a part for each."""
        parts: list[list[int]] = [[]]
        for token in ids:
            if token in self.role_ids:
                parts.append([])
            parts[-1].append(token)
        return parts

    # ------------------------------------------------------------------------------------------------ files

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> tuple[str, ...]:
        """The folder's own files, as they are."""
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        there = [Path(self.vocab_file).with_name(name) for name in FILES]
        for file in there:
            if file.is_file() and file.resolve() != (target / file.name).resolve():
                shutil.copyfile(file, target / file.name)
        return tuple(str(target / file.name) for file in there if file.is_file())

    def own_settings(self) -> dict[str, Any]:
        """What the rows hang on beside `vocab_file`."""
        return {"chat_template": self.chat_template}


def _as_template_takes(message: Message) -> Message:
    """Without our own marks."""
    kept = {name: message[name] for name in ("role", "content", "metadata", "tools") if name in message}
    if message.get("arguments") is not None:
        import json

        kept["content"] = json.dumps(message["arguments"], ensure_ascii=False)
    if "tools" in kept:
        kept["tools"] = checked_tools(kept["tools"])
    return kept
