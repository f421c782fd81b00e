"""Scores of answers against labels."""

from collections.abc import Sequence

TEXT_SCORES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


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


def text_score(prediction: str, label: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F over jieba's words, and BLEU-4 over characters, in percent with four digits.

    As the official P-Tuning script has them: BLEU smoothed by method 3 of Chen and Cherry (2014). Where that script
    fails, on a side without any word, ROUGE is 0.
    """
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel("ERROR")
    words = [" ".join(jieba.cut(text)) for text in (prediction, label)]
    scores = dict.fromkeys(TEXT_SCORES, 0.0)
    if all(text.split() for text in words):
        scores |= {name: score["f"] for name, score in Rouge().get_scores(*words)[0].items()}
    if prediction and label:
        smoothing = SmoothingFunction().method3
        scores["bleu-4"] = sentence_bleu([list(label)], list(prediction), smoothing_function=smoothing)
    return {name: round(100 * value, 4) for name, value in scores.items()}


def text_scores(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Means of `text_score` over records."""
    scores = [text_score(p, label) for p, label in zip(predictions, labels, strict=True)]
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
