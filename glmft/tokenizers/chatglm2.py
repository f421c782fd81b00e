"""ChatGLM2-6B (and CodeGeeX2): the prompt is text with numbered rounds."""

from collections.abc import Sequence
from typing import Any

from glmft.tokenizers.base import FamilyTokenizer, Message, rounds_of


class ChatGLM2Tokenizer(FamilyTokenizer):
    family = "glm2"

    def __init__(self, vocab_file: str, **kwargs: Any):
        # The class that the official folder came with drops spaces before punctuation when decoding.
        kwargs.setdefault("clean_up_tokenization_spaces", True)
        super().__init__(vocab_file, **kwargs)

    def build_prompt(self, query: str, history: list[tuple[str, str]] | None = None) -> str:
        """The official prompt text: earlier rounds, then the query, then the answer's cue."""
        history = history or []
        rounds = "".join(f"[Round {i}]\n\n问：{q}\n\n答：{a}\n\n" for i, (q, a) in enumerate(history, 1))
        return f"{rounds}[Round {len(history) + 1}]\n\n问：{query}\n\n答："

    def chat_ids(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        rounds, query = rounds_of(messages, self.family)
        if query is None:
            (last, answer), rounds = rounds[-1], rounds[:-1]
            return self.prefix_ids + self.encode_text(self.build_prompt(last, rounds) + answer)
        text = self.build_prompt(query, rounds)
        return self.prefix_ids + self.encode_text(text if add_generation_prompt else text.removesuffix("答："))
