"""The baseline without a model: regular expressions read off a training file, names turned into wildcards.

Of every training sentence whose names are known, each clause that holds a triple's two names becomes an expression;
where a clause begins with an opening ("据说…") the shorter clause met elsewhere fits inside it. A triple's relation is
the commonest one of its expression. Longer expressions go first, and text is read once.
"""

import re
from collections import Counter, defaultdict
from itertools import pairwise

CLAUSE = re.compile(r"[，；。]")


def learn(records: list[dict[str, str]]) -> list[tuple[re.Pattern, str, bool]]:
    """Expressions with the relation of each and whether its head comes first, longest first."""
    triples = [(row["input"], line.split("_")) for row in records for line in row["output"].split("\n")]
    letters = "".join(sorted({c for _, (head, _, tail) in triples for c in head + tail}))
    votes = defaultdict(Counter)
    for text, (head, relation, tail) in triples:
        parts = CLAUSE.split(text)
        clauses = [*parts, *("，".join(pair) for pair in pairwise(parts))]  # a pattern may itself have a comma
        clause = next(clause for clause in clauses if head in clause and tail in clause)
        first, second = sorted((head, tail), key=clause.index)
        clause = clause.replace(first, "<>").replace(second, "<>")
        if not set(clause) & set(letters):  # a third name: the sentence's own matter
            votes[clause][relation, first == head] += 1
    found = []
    for clause in sorted(votes, key=len, reverse=True):
        expression = re.compile(re.escape(clause).replace("<>", f"([{letters}]{{2}})"))
        found.append((expression, *votes[clause].most_common(1)[0][0]))
    return found


def answer(expressions: list[tuple[re.Pattern, str, bool]], text: str) -> str:
    """The triples that the expressions see in a text, one a line."""
    lines = []
    for expression, relation, head_first in expressions:
        while match := expression.search(text):
            head, tail = match.groups() if head_first else match.groups()[::-1]
            lines.append(f"{head}_{relation}_{tail}")
            text = text[: match.start()] + "。" + text[match.end() :]
    return "\n".join(lines)
