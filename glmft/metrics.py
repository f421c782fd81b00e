"""Scores of answers against labels."""

from collections.abc import Sequence


def triples(text: str) -> set[str]:
    """The lines of a text that have exactly three parts between underscores."""
    return {line for line in text.split("\n") if line.count("_") == 2}


def triple_score(prediction: str, label: str) -> tuple[float, float, float]:
    """Precision, recall and F1 of one record, as the reference project counts them.

    Malformed lines are dropped from the prediction only; every line of the label counts, and both become sets.
    """
    found, gold = triples(prediction), set(label.split("\n"))
    hits = len(found & gold)
    precision, recall = hits / len(found) if found else 0.0, hits / len(gold)
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def triple_f1(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Means of precision, recall and F1 over records."""
    scores = [triple_score(p, label) for p, label in zip(predictions, labels, strict=True)]
    means = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
    return dict(zip(("precision", "recall", "f1"), means, strict=True))
