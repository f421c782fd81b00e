"""Scores of many answers, taken in one by one: means, triples by relation, classes."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from glmft.inference.metrics import text_score, triple_lines, triple_score

MOST_CLASSES, LONGEST_CLASS = 50, 50  # labels that differ, their characters
FEWEST_A_CLASS = 2  # records that a class has on average, or labels are texts rather than classes
DIGITS = 6


@dataclass
class Counts:
    """What precision, recall and F1 come from."""

    hits: int = 0
    predicted: int = 0
    gold: int = 0

    def figures(self) -> dict[str, float | int]:
        """Precision, recall and F1 (from 0 to 1) and how many there should be."""
        precision = self.hits / self.predicted if self.predicted else 0.0
        recall = self.hits / self.gold if self.gold else 0.0
        f1 = 2 * self.hits / (self.predicted + self.gold) if self.hits else 0.0
        rounded = {
            name: round(value, DIGITS) for name, value in (("precision", precision), ("recall", recall), ("f1", f1))
        }
        return {**rounded, "gold": self.gold, "predicted": self.predicted}


@dataclass
class Triples:
    """Triples of all records: the mean of each record's scores, and counts over all of them."""

    records: int = 0
    labelled: bool = False
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    relations: dict[str, Counts] = field(default_factory=dict)

    def add(self, prediction: str, label: str) -> None:
        self.records += 1
        self.sums = [a + b for a, b in zip(self.sums, triple_score(prediction, label), strict=True)]
        predicted, gold = triple_lines(prediction), triple_lines(label)
        self.labelled = self.labelled or bool(gold)
        for name, lines in (("predicted", predicted), ("gold", gold), ("hits", predicted & gold)):
            for line in lines:
                counts = self.relations.setdefault(line.split("_")[1], Counts())
                setattr(counts, name, getattr(counts, name) + 1)

    def results(self) -> dict[str, Any]:
        """As the reference project counts (a mean over records), micro, and by relation; nothing without labels."""
        if not self.labelled:
            return {}
        means = (round(value / self.records, DIGITS) for value in self.sums)
        all_counts = self.relations.values()
        micro = Counts(*(sum(getattr(c, name) for c in all_counts) for name in ("hits", "predicted", "gold")))
        order = sorted(self.relations, key=lambda name: (-self.relations[name].gold, name))
        known = {name: self.relations[name].figures() for name in order if self.relations[name].gold}
        others = sum(counts.predicted for counts in all_counts if not counts.gold)
        return {
            "triple": dict(zip(("precision", "recall", "f1"), means, strict=True)),
            "triple_micro": micro.figures(),
            "triple_relations": known,
            "triple_other_relations": others,
        }


@dataclass
class Classes:
    """Labels as classes, as long as they are few; an answer that is no class is a miss of its label."""

    records: int = 0
    gold: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    are_few: bool = True

    def add(self, prediction: str, label: str) -> None:
        if not self.are_few:
            return
        prediction, label = prediction.strip(), label.strip()
        self.records += 1
        self.gold[label] += 1
        self.hits[label] += prediction == label
        if len(prediction) <= LONGEST_CLASS:
            self.predicted[prediction] += 1
        if len(self.gold) > MOST_CLASSES or len(label) > LONGEST_CLASS or not label:
            self.are_few = False
            self.gold.clear()
            self.predicted.clear()

    def results(self) -> dict[str, Any]:
        """Accuracy, and F1 as the mean over the classes of the labels; nothing where labels are not few."""
        count = len(self.gold)
        if not self.are_few or count < 2 or self.records < FEWEST_A_CLASS * count:
            return {}
        classes = {
            name: Counts(self.hits[name], self.predicted[name], gold).figures()
            for name, gold in sorted(self.gold.items(), key=lambda item: (-item[1], item[0]))
        }
        return {
            "accuracy": round(sum(self.hits.values()) / self.records, DIGITS),
            "macro_f1": round(sum(figures["f1"] for figures in classes.values()) / count, DIGITS),
            "classes": classes,
        }


@dataclass
class Scores:
    """All scores of answers that come one by one; memory goes with the relations and classes, not with the answers."""

    records: int = 0
    empty: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    triples: Triples = field(default_factory=Triples)
    classes: Classes = field(default_factory=Classes)

    def add(self, prediction: str, label: str) -> None:
        self.records += 1
        self.empty += not prediction.strip()
        self.sums.update(text_score(prediction, label))
        self.triples.add(prediction, label)
        self.classes.add(prediction, label)

    def results(self) -> dict[str, Any]:
        """As predict_results.json has them."""
        means = {f"predict_{name}": round(value / self.records, DIGITS) for name, value in self.sums.items()}
        counts = {"records": self.records, "empty_predictions": self.empty}
        return {**counts, **means, **self.triples.results(), **self.classes.results()}
