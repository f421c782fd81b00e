"""Scores of one answer against its label."""

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import chain


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


@functools.cache
def cutter() -> Callable[[str], Iterator[str]]:
    """jieba's cut, which keeps to itself how long it took to load its words."""
    import jieba

    jieba.setLogLevel("ERROR")
    return jieba.cut


@functools.lru_cache(4)
def words_of(text: str) -> tuple[str, ...]:
    """The words that jieba sees in a text, white space among them."""
    return tuple(cutter()(text))


def rouge(prediction: str, label: str) -> dict[str, float]:
    """F of ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004) over jieba's words, in percent with four digits.

    0 for a side without any word.
    """
    from rouge_chinese import Rouge

    texts = [" ".join(words_of(text)) for text in (prediction, label)]
    if not all(text.split() for text in texts):
        return dict.fromkeys(("rouge-1", "rouge-2", "rouge-l"), 0.0)
    return {name: round(100 * score["f"], 4) for name, score in Rouge().get_scores(*texts)[0].items()}


def bleu(prediction: str, label: str) -> dict[str, float]:
    """BLEU-4 over characters, in percent with four digits, as in the official P-Tuning script."""
    return {"bleu-4": round(100 * bleu_4(tuple(prediction), tuple(label)), 4)}


def bleu_of_words(prediction: str, label: str) -> dict[str, float]:
    """BLEU-4 over jieba's words of both texts without the white space around them, as in ChatGLM3's script.

    That script's figure is a share from 0 to 1, and so is this one.
    """
    return {"bleu-4-words": bleu_4(words_of(prediction.strip()), words_of(label.strip()))}


def bleu_4(prediction: Sequence[str], label: Sequence[str]) -> float:
    """From 0 to 1, smoothed by method 3 of Chen and Cherry (2014); 0 for a side without anything."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    if not (prediction and label):
        return 0.0
    return float(sentence_bleu([label], prediction, smoothing_function=SmoothingFunction().method3))


def exact_match(prediction: str, label: str) -> dict[str, float]:
    """100 if the answer is the label, white space around them aside; 0 for an empty answer in any case."""
    return {"exact-match": 100.0 * (prediction.strip() == label.strip() != "")}


# What every answer is scored by; to add a metric, write its function and name it here.
TEXT_METRICS: list[Callable[[str, str], dict[str, float]]] = [rouge, bleu, bleu_of_words, exact_match]


def text_score(prediction: str, label: str) -> dict[str, float]:
    """All of `TEXT_METRICS` of one answer: percent, but for `bleu-4-words`."""
    return dict(chain.from_iterable(metric(prediction, label).items() for metric in TEXT_METRICS))


def text_scores(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Means of `text_score` over records."""
    scores = [text_score(p, label) for p, label in zip(predictions, labels, strict=True)]
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
