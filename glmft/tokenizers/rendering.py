"""Chats to text by a template, and such text to ids.

Special tokens are read in rendered text alone. What a user wrote is disguised while a template runs: a mark is put into
whatever looks like a special token, and taken out when the text is read. So it stays text, and text that
`apply_chat_template(tokenize=False)` gave has the ids that `tokenize=True` gives.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers import BatchEncoding
from transformers.utils.chat_template_utils import get_json_schema, render_jinja_template

from glmft.tokenizers.templates import DEFAULT, is_superseded, shipped

Message = dict[str, Any]
DISGUISE = "\U000f5a17"  # for private use: hardly any text has it; where one does, it is doubled
TEMPLATE_FILE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"


class ChatTemplates:
    """A part of a tokenizer of the families: its chat templates.

    Two are shipped with every family: `default`, the official form, and `training`, a row of the training data with the
    end token and the marks of what is learned. A template that is set or passed takes their place.
    """

    family: str
    opening: str = "[gMASK]sop"  # that rendered text begins with
    marks: tuple[str, ...] = ("</s>",)  # that are read in it, beside the opening

    def take_templates(self) -> None:
        """Use the shipped ones unless the folder has its own."""
        if not self.chat_template or (isinstance(self.chat_template, str) and is_superseded(self.chat_template)):
            self.chat_template = dict(shipped(self.family)) or None

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """As transformers' method; the names of the shipped ones are always known."""
        known = self.chat_template if isinstance(self.chat_template, dict) else {}
        if chat_template in shipped(self.family) and chat_template not in known:
            return shipped(self.family)[chat_template]
        return super().get_chat_template(chat_template, tools)

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        tools: Sequence[Any] | None = None,
        documents: Sequence[dict[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' method of this name.

        Args:
            conversation: messages of `role` and `content` (a text, or parts of `type: text`), or several such lists.
            tools: descriptions of functions or Python functions, for families that know tools.
            chat_template: `default`, `training`, or the text of another template.
            tokenize: give ids; if False, the text of them, in which special tokens are written out.
            return_assistant_tokens_mask: also give `assistant_masks`, 1 = learned; with `training` these are the
                positions that have a label in training.

        Raises:
            ValueError: what the template cannot express.
        """
        if return_assistant_tokens_mask and not (return_dict and tokenize):
            raise ValueError("return_assistant_tokens_mask needs return_dict=True and tokenize=True")
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            raise ValueError("continue_final_message goes with neither generation prompt nor mask")
        chats, batched = _chats(conversation)
        texts, spans = self._render(
            chats,
            self.get_chat_template(chat_template, tools),
            tools,
            documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
            **kwargs,
        )
        if not tokenize:
            return texts if batched else texts[0]
        row_settings = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            **(tokenizer_kwargs or {}),
        }
        encoded = self._encoded(texts, spans if return_assistant_tokens_mask else None, batched, row_settings)
        if return_tensors:
            encoded.convert_to_tensors(return_tensors, prepend_batch_axis=not batched)
        return encoded if return_dict else encoded["input_ids"]

    def _encoded(self, texts: list[str], spans: list | None, batched: bool, settings: dict[str, Any]) -> BatchEncoding:
        """Ids of rendered texts, and with `spans` their masks."""
        rows = [self.rendered_ids(text) for text in texts]
        encoded = self(rows if batched else rows[0], add_special_tokens=False, **settings)
        if spans is not None:
            shown = encoded["input_ids"] if batched else [encoded["input_ids"]]
            side = settings.get("padding_side") or self.padding_side
            masks = [self._mask(*row, side) for row in zip(texts, spans, shown, strict=True)]
            encoded["assistant_masks"] = masks if batched else masks[0]
        return encoded

    def _render(
        self, chats: list[list[Message]], template: str, tools: Any, documents: Any, **kwargs: Any
    ) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """The text of each chat, and what of it is learned as [first, end) characters. Raises ValueError."""
        from jinja2 import TemplateError

        marks = self.disguised_marks(template)
        schemas = [tool if isinstance(tool, dict) else get_json_schema(tool) for tool in tools or []] or None
        try:
            return render_jinja_template(
                conversations=disguised(chats, marks),
                tools=disguised(schemas, marks),
                documents=disguised(documents, marks),
                chat_template=template,
                **{**self.special_tokens_map, **kwargs},
            )
        except TemplateError as error:
            raise ValueError(str(error)) from None

    def _mask(self, text: str, runs: Sequence[tuple[int, int]], ids: list[int], padding_side: str) -> list[int]:
        """1 for the ids of `runs`, which are [first, end) characters of a rendered text; cut and padded as `ids`."""
        mask = [0] * len(self.rendered_ids(text))
        for run in runs:
            first, end = (len(self.rendered_ids(text[:place])) for place in run)
            mask[first:end] = [1] * (end - first)
        if len(mask) > len(ids):
            return mask[: len(ids)] if self.truncation_side == "right" else mask[-len(ids) :]
        filler = [0] * (len(ids) - len(mask))
        return filler + mask if padding_side == "left" else mask + filler

    # ------------------------------------------------------------------------------------------------ text to ids

    def disguised_marks(self, template: str) -> tuple[str, ...]:
        """What is read in rendered text, and stays text where a user wrote it."""
        return ("[gMASK]", *self.marks)

    def is_rendered(self, text: str) -> bool:
        """Whether a template made this text, as its beginning tells."""
        rest = text.removeprefix(self.opening)
        return text.startswith(self.opening) and rest != "" and not rest[0].isspace()

    def rendered_ids(self, text: str) -> list[int]:
        """Ids of rendered text, in which special tokens are read."""
        ids: list[int] = []
        if self.opening and text.startswith(self.opening):
            ids, text = list(self.prefix_ids), text[len(self.opening) :]
        for i, part in enumerate(re.split(f"({'|'.join(map(re.escape, self.marks))})", text)):
            ids += [self._convert_token_to_id(part)] if i % 2 else self.encode_text(undisguised(part))
        return ids

    # ------------------------------------------------------------------------------------------------ files

    def write_templates(self, folder: Path) -> list[str]:
        """Write the templates where transformers and servers look for them; their paths."""
        if self.chat_template is None:
            return []
        own = self.chat_template if isinstance(self.chat_template, dict) else {DEFAULT: self.chat_template}
        places = {name: folder / MORE_TEMPLATES / f"{name}.jinja" for name in own}
        if DEFAULT in own:
            places[DEFAULT] = folder / TEMPLATE_FILE
        for name, path in places.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(own[name], encoding="utf-8", newline="")
        return [str(path) for path in places.values()]


def _chats(conversation: Any) -> tuple[list[list[Message]], bool]:
    """The chats, and whether there may be several. Raises ValueError for one without messages."""
    batched = bool(conversation) and not isinstance(conversation[0], dict)
    chats = [getattr(chat, "messages", chat) for chat in conversation] if batched else [conversation]
    if not all(chats) or not chats:
        raise ValueError("the conversation is empty")
    return chats, batched


def disguised(value: Any, marks: tuple[str, ...]) -> Any:
    """A value in whose texts nothing is one of `marks`."""
    if isinstance(value, str):
        return _any_of(marks).sub(lambda match: match[0][0] + DISGUISE + match[0][1:], value) if marks else value
    if isinstance(value, list | tuple):
        return [disguised(part, marks) for part in value]
    if isinstance(value, dict):
        return {disguised(name, marks): disguised(part, marks) for name, part in value.items()}
    return value


@cache
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, (*marks, DISGUISE))))


def undisguised(text: str) -> str:
    return re.sub(f"{DISGUISE}({DISGUISE}?)", r"\1", text) if DISGUISE in text else text
