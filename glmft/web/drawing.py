"""Pieces of the page as HTML; every text that comes from a file or a model is escaped here."""

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape, unescape
from typing import Any

from glmft.data.show import TokenRow
from glmft.web.runs import Run
from glmft.web.words import Say

VISIBLE = {"\n": "⏎\n", "\t": "⇥\t"}


def note(text: str, kind: str = "quiet") -> str:
    """A sentence; `kind` is `quiet` or `bad`."""
    return f'<p class="g-note g-{kind}">{escape(text)}</p>' if text else ""


def report(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="g-report">{items}</ul>'


def flow(tokens: Iterable[TokenRow]) -> str:
    """Tokens one behind the other as they make the text, coloured by what they are; ids and labels on pointing."""
    return f'<div class="g-flow">{"".join(map(_chip, tokens))}</div>'


def _chip(token: TokenRow) -> str:
    text = "".join(VISIBLE.get(c, c) for c in token.piece.replace("▁", " "))
    title = f"{token.piece!r}: {token.id} → {token.label}"
    return f'<span class="g-token{_kinds(token)}" title="{escape(title)}">{escape(text)}</span>'


def _kinds(token: TokenRow) -> str:
    return " g-learned" * token.is_learned + " g-special" * token.is_special


def token_table(tokens: Sequence[TokenRow], say: Say) -> str:
    """A line a token: piece, id, label."""
    head = "".join(f"<th>{escape(say(name))}</th>" for name in ("number", "piece", "id", "label"))
    rows = "".join(
        f'<tr class="{_kinds(token)}"><td>{i}</td><td><code>{escape(repr(token.piece)[1:-1])}</code></td>'
        f"<td>{token.id}</td><td>{token.label}</td></tr>"
        for i, token in enumerate(tokens)
    )
    return f'<div class="g-scroll"><table class="g-table g-numbers"><tr>{head}</tr>{rows}</table></div>'


def record(place: str, tokens: Sequence[TokenRow], more: int, say: Say) -> str:
    """One row of a data file: a line about it, a legend, the tokens as a text and, on demand, as a table."""
    learned = sum(token.is_learned for token in tokens)
    about = f"{place.rpartition('/')[2]}: {len(tokens) + more} {say('tokens')}, {learned} {say('with_label')}"
    return (
        f'<p class="g-about">{escape(about)}</p>{legend(say)}{flow(tokens)}'
        + note(say("more_tokens").format(more) if more else "")
        + f"<details><summary>{escape(say('as_table'))}</summary>{token_table(tokens, say)}</details>"
    )


LEARNED_LEGEND = {"legend_learned": " g-learned", "legend_context": "", "legend_special": " g-special"}


def legend(say: Say, kinds: dict[str, str] = LEARNED_LEGEND) -> str:
    """What the colours mean: names of words, and the classes of their chips."""
    chips = "".join(f'<span class="g-token{kind}">{escape(say(name))}</span>' for name, kind in kinds.items())
    return f'<div class="g-legend">{chips}</div>'


def pairs(values: dict[str, Any], heads: tuple[str, str]) -> str:
    """A table of names and values."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    rows = "".join(f"<tr><td>{escape(k)}</td><td><code>{escape(shown(v))}</code></td></tr>" for k, v in values.items())
    return f'<div class="g-scroll"><table class="g-table"><tr>{head}</tr>{rows}</table></div>'


def shown(value: Any) -> str:
    """A setting's value; numbers in few digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else str(value)


def tiles(values: dict[str, str]) -> str:
    """Figures side by side, each under its name."""
    boxes = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in values.items())
    return f'<div class="g-tiles">{boxes}</div>'


def run_summary(run: Run, say: Say) -> str:
    """Where a run stands, in a badge, a bar and its newest figures."""
    done = f"{say('step')} {run.step:,}" + (f" {say('of')} {run.total:,}" if run.total else "")
    share = min(100.0, 100 * run.step / run.total) if run.total else 0.0
    bar = f'<div class="g-bar"><i style="width:{share:.1f}%"></i></div>' if run.total else ""
    badge = f'<span class="g-badge g-{run.state}">{escape(say(run.state))}</span>'
    figures = {
        say("loss"): number(run.last("loss")),
        f"{say('loss')} ({say('validation')})": number(run.last("eval_loss")),
        say("learning_rate"): number(run.last("learning_rate")),
        say("grad_norm"): number(run.last("grad_norm")),
        say("tokens_per_second"): number(run.last("tokens_per_second")),
        say("peak_memory"): gibibytes(run.last("peak_memory_bytes")),
    }
    kept = {name: value for name, value in figures.items() if value}
    return f'<div class="g-state">{badge}<span>{escape(done)}</span></div>{bar}{tiles(kept)}'


def number(value: float | None) -> str:
    """Four digits; empty for none."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def gibibytes(value: float | None) -> str:
    return "" if value is None else f"{value / 2**30:.2f} GiB"


def answered(fields: dict[str, str], say: Say) -> str:
    """A record of predictions whole: its parts under their names."""
    parts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text) or '<i>' + escape(say('empty_text')) + '</i>'}</dd>"
        for name, text in fields.items()
    )
    return f'<dl class="g-record">{parts}</dl>'


def preformatted(text: str) -> str:
    return f'<pre class="g-pre">{escape(text)}</pre>'


def plain(text: str) -> str:
    """A text as it is."""
    return escape(text)


CODE = re.compile(r"(```.*?(?:```|$)|`[^`\n]*`|\$\$.*?\$\$)", re.DOTALL)  # what is shown as it stands, or as a formula


def as_markdown(text: str) -> str:
    """A text for the chat, which shows Markdown.

    What looks like HTML or a picture is shown as it was written, and so are underscores, which part the triples of many
    a model's answers.
    """
    return _outside_code(text, lambda part: escape(part, quote=False).replace("![", "!\\[").replace("_", "\\_"))


def from_markdown(text: str) -> str:
    """What `as_markdown` made such a text of."""
    return _outside_code(text, lambda part: unescape(part.replace("\\_", "_").replace("!\\[", "![")))


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    return "".join(part if i % 2 else change(part) for i, part in enumerate(CODE.split(text)))
