"""Scores of answers against labels."""

from collections.abc import Callable, Sequence


def triple_lines(text: str) -> set[str]:
    """The lines of a text that have exactly three parts between underscores."""
    return {line for line in text.split("\n") if line.count("_") == 2}


def triple_score(prediction: str, label: str) -> tuple[float, float, float]:
    """Precision, recall and F1 of one record, as the reference project counts them.

    Malformed lines are dropped from the prediction only; every line of the label counts, and both become sets.
    """
    predicted, gold = triple_lines(prediction), set(label.split("\n"))
    hits = len(predicted & gold)
    precision, recall = hits / len(predicted) if predicted else 0.0, hits / len(gold)
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def triple_f1(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Means of precision, recall and F1 over records."""
    scores = [triple_score(p, label) for p, label in zip(predictions, labels, strict=True)]
    means = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
    return dict(zip(("precision", "recall", "f1"), means, strict=True))


def rouge(prediction: str, label: str) -> dict[str, float]:
    """F of ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004) over jieba's words; 0 for a side without any word."""
    import jieba
    from rouge_chinese import Rouge

    jieba.setLogLevel("ERROR")
    words = [" ".join(jieba.cut(text)) for text in (prediction, label)]
    if not all(text.split() for text in words):
        return dict.fromkeys(("rouge-1", "rouge-2", "rouge-l"), 0.0)
    return {name: 100 * score["f"] for name, score in Rouge().get_scores(*words)[0].items()}


def bleu(prediction: str, label: str) -> dict[str, float]:
    """BLEU-4 over characters, smoothed by method 3 of Chen and Cherry (2014), as in the official P-Tuning script."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    if not (prediction and label):
        return {"bleu-4": 0.0}
    smoothing = SmoothingFunction().method3
    return {"bleu-4": 100 * sentence_bleu([list(label)], list(prediction), smoothing_function=smoothing)}


# What every answer is scored by, in percent; to add a metric, write its function and name it here.
TEXT_METRICS: list[Callable[[str, str], dict[str, float]]] = [rouge, bleu]


def text_score(prediction: str, label: str) -> dict[str, float]:
    """All of `TEXT_METRICS` of one answer, in percent with four digits."""
    scores = (score for metric in TEXT_METRICS for score in metric(prediction, label).items())
    return {name: round(value, 4) for name, value in scores}


def text_scores(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Means of `text_score` over records."""
    scores = [text_score(p, label) for p, label in zip(predictions, labels, strict=True)]
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
