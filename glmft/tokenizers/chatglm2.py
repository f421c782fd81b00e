"""ChatGLM2-6B (and CodeGeeX2): the prompt is text with numbered rounds."""

from typing import Any

from glmft.tokenizers.base import ChatGLMTokenizer


class ChatGLM2Tokenizer(ChatGLMTokenizer):
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
