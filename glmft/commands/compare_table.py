"""What a comparison shows: a table in Markdown and CSV, the figures of each run, a picture with bars."""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmft.commands.compare_run import Outcome
from glmft.commands.published import PUBLISHED
from glmft.files import new_file
from glmft.training.tracking import clock

OURS, BASE, THEIRS = "measured here", "base", "published"
TITLES = {
    **{"f1": "F1", "f1-micro": "F1 micro", "rouge-1": "ROUGE-1", "rouge-2": "ROUGE-2", "rouge-l": "ROUGE-L"},
    **{"bleu-4": "BLEU-4", "bleu-4-words": "BLEU-4 words", "exact-match": "exact match"},
}
SHOWN = ("f1", "rouge-l", "bleu-4")  # in Markdown; the CSV has all


@dataclass
class Row:
    """One line of the table.

    Args:
        kind: `OURS`, `BASE` or `THEIRS`.
        means, spreads: by the name of a figure; a spread is the standard deviation over seeds (n - 1), of two or more.
        each: by the name of a figure, that of each seed.
        failures: `seed 1235: why`.
        note: the source of what is published.
    """

    name: str
    kind: str
    means: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)
    each: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    note: str = ""


def row_of(name: str, outcomes: Sequence[Outcome], before: dict[str, float]) -> Row:
    """Means and spreads over a tuner's runs.

    Args:
        before: the base's scores; what is lost of those of the general set is a figure, too.
    """
    row = Row(name, OURS)
    row.failures = [f"seed {o.run.config.seed}: {o.failure}" for o in outcomes if o.failure is not None]
    for outcome in (outcome for outcome in outcomes if outcome.failure is None):
        for key, value in with_drops(outcome.figures, before).items():
            row.each.setdefault(key, []).append(value)
    row.means = {key: statistics.fmean(values) for key, values in row.each.items()}
    row.spreads = {key: statistics.stdev(values) for key, values in row.each.items() if len(values) > 1}
    return row


def with_drops(figures: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """Figures with what is lost of each score of the general set."""
    lost = {f"drop/{k.removeprefix('general/')}": before[k] - v for k, v in figures.items() if k in before}
    return figures | {key: value for key, value in lost.items() if not key.startswith("drop/test")}


def published_rows() -> list[Row]:
    return [
        Row(
            f"{row.tuner} (published)",
            THEIRS,
            {f"test/{key}": value for key, value in row.scores.items()},
            note=row.source,
        )
        for row in PUBLISHED
    ]


# ---------------------------------------------------------------------------------------------------- Markdown


def markdown(rows: Sequence[Row], metric: str, heading: Sequence[str]) -> str:
    """The whole of compare.md."""
    shown = [name for name in SHOWN if any(f"test/{name}" in row.means for row in rows if row.kind != THEIRS)]
    titles = ["", "trains", *(TITLES[name] for name in shown), "final loss", "time", "peak memory", "checkpoint"]
    titles.append(f"general {TITLES[metric]}: after, drop")
    lines = [*heading, "", f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    lines += [_line(row, shown, metric, len(titles)) for row in rows if row.kind != THEIRS or _has(row, shown)]
    failures = [f"- {row.name}, {failure}" for row in rows for failure in row.failures]
    return "\n".join([*lines, *(["", "Runs that failed:", "", *failures] if failures else [])]) + "\n"


def _has(row: Row, shown: Sequence[str]) -> bool:
    return any(f"test/{name}" in row.means for name in shown)


def _line(row: Row, shown: Sequence[str], metric: str, columns: int) -> str:
    if not row.means:
        reason = row.failures[0].replace("|", "\\|") if row.failures else "nothing"
        return f"| {row.name} | failed: {reason} |" + " |" * (columns - 2)
    count = row.means.get("trainable_parameters")
    share = count and count / row.means.get("total_parameters", count)
    cells = [row.name + (f" ({len(row.failures)} failed)" if row.failures else "")]
    if row.kind == THEIRS:
        cells = [f"*{row.name}; {row.note}*"]
    cells.append("nothing" if row.kind == BASE else f"{count:,.0f} ({share:.2%})" if count else "–")
    cells += [_score(name, row.means.get(f"test/{name}"), row.spreads.get(f"test/{name}")) for name in shown]
    cells.append(_spread("{:.4f}", row, "final_loss"))
    seconds, memory, size = (row.means.get(name) for name in ("seconds", "peak_memory_bytes", "checkpoint_bytes"))
    cells += ["–" if seconds is None else clock(seconds), _size(memory), _size(size)]
    after, lost = row.means.get(f"general/{metric}"), row.means.get(f"drop/{metric}")
    general = _score(metric, after, row.spreads.get(f"general/{metric}"))
    cells.append(general if lost is None else f"{general}, {_score(metric, lost, None)}")
    return f"| {' | '.join(cells)} |"


def _score(name: str, mean: float | None, spread: float | None) -> str:
    digits = 4 if name in ("f1", "f1-micro", "bleu-4-words") else 2
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _spread(pattern: str, row: Row, name: str) -> str:
    if name not in row.means:
        return "–"
    return pattern.format(row.means[name]) + (f" ± {pattern.format(row.spreads[name])}" if name in row.spreads else "")


def _size(count: float | None) -> str:
    if count is None:
        return "–"
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.2f} MiB"


# ---------------------------------------------------------------------------------------------------- CSV


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Every mean and spread, a line for each row. Raises OSError."""
    names = list(dict.fromkeys(name for row in rows for name in row.means))
    columns = ["tuner", "kind", "runs", "failed", "note", *(f"{n}{end}" for n in names for end in ("", "/spread"))]
    lines = []
    for row in rows:
        runs = max(map(len, row.each.values()), default=0)
        first = {"tuner": row.name, "kind": row.kind, "runs": runs, "failed": len(row.failures)}
        spreads = {f"{name}/spread": value for name, value in row.spreads.items()}
        lines.append({**first, "note": row.note or "; ".join(row.failures), **row.means, **spreads})
    _write_csv(path, columns, lines)


def write_runs(path: Path, outcomes: Sequence[Outcome]) -> None:
    """The figures of each run, or why there are none. Raises OSError."""
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.figures))
    lines = [
        {"tuner": o.run.tuner, "seed": o.run.config.seed, "folder": o.run.folder, "failure": o.failure, **o.figures}
        for o in outcomes
    ]
    _write_csv(path, ["tuner", "seed", "folder", "failure", *names], lines)


def _write_csv(path: Path, columns: list[str], lines: list[dict[str, Any]]) -> None:
    with new_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)


# ---------------------------------------------------------------------------------------------------- picture


def draw(path: Path, rows: Sequence[Row], metric: str) -> None:
    """Bars of the score, ours and those published in the same metric; and of the general set, after each tuner.

    Raises OSError.
    """
    from matplotlib.figure import Figure

    base = next((row for row in rows if row.kind == BASE), None)
    ours = [row for row in rows if row.kind == OURS]
    theirs = [row for row in rows if row.kind == THEIRS and f"test/{metric}" in row.means]
    has_general = any(f"general/{metric}" in row.means for row in ours)
    figure = Figure(figsize=(5 + 0.7 * len(ours + theirs) + 4 * has_general, 4.2), layout="constrained")
    widths = [len(ours + theirs) + 1, len(ours) + 1][: 1 + has_general]
    panels = figure.subplots(1, 1 + has_general, squeeze=False, width_ratios=widths)[0]
    _bars(panels[0], ours, f"test/{metric}", base)
    for i, row in enumerate(theirs, len(ours)):
        bar = panels[0].bar(i, row.means[f"test/{metric}"], color="white", edgecolor="gray", hatch="//")
        panels[0].bar_label(bar, fmt="%.3g", fontsize=8, padding=2)
    _finish(panels[0], [row.name for row in ours] + [row.name.replace(" (", "\n(") for row in theirs], "the task")
    panels[0].set_ylabel(TITLES[metric])
    if has_general:
        _bars(panels[1], ours, f"general/{metric}", base)
        _finish(panels[1], [row.name for row in ours], "what is left of what the base could do")
    with new_file(path) as aside:
        figure.savefig(aside, format="png", dpi=120)


def _bars(axes: Any, rows: Sequence[Row], name: str, base: Row | None) -> None:
    """A bar for each tuner, its spread, a dot for each seed; the base as a line."""
    for i, row in enumerate(rows):
        if name not in row.means:
            axes.text(i, 0, "failed", rotation=90, ha="center", va="bottom", color="gray")
            continue
        bar = axes.bar(i, row.means[name], yerr=row.spreads.get(name), capsize=4, color=f"C{i}", alpha=0.8)
        axes.bar_label(bar, fmt="%.3g", fontsize=8, padding=2)
        axes.plot([i] * len(row.each[name]), row.each[name], ".", color="black", markersize=4)
    if base is not None and name in base.means:
        axes.axhline(base.means[name], color="black", linestyle="--", linewidth=1, label="the base, untrained")
        axes.legend(fontsize=8)


def _finish(axes: Any, labels: Sequence[str], title: str) -> None:
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])  # room for the figures above the bars
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
