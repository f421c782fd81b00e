"""Figures that others have published: of other models, on other data, never measured here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row.

    Args:
        scores: F1 from 0 to 1, the others in percent.
    """

    tuner: str
    source: str
    scores: dict[str, float]


TRIPLES = "ChatGLM-Finetuning: ChatGLM-6B, its own triples"
ADGEN = "ChatGLM-6B's ptuning folder: ADGEN, 3000 steps"
PUBLISHED = [
    Published("P-Tuning", TRIPLES, {"f1": 0.6283}),
    Published("freeze", TRIPLES, {"f1": 0.5675}),
    Published("LoRA", TRIPLES, {"f1": 0.5359}),
    Published("prompt, embedding only", TRIPLES, {"f1": 0.0}),
    Published(
        "P-Tuning v2 (128, 2e-2, INT4)", ADGEN, {"bleu-4": 7.71, "rouge-1": 31.35, "rouge-2": 7.19, "rouge-l": 25.17}
    ),
    Published("LoRA (5e-4)", ADGEN, {"bleu-4": 6.13, "rouge-1": 28.36, "rouge-2": 4.38, "rouge-l": 17.54}),
]
