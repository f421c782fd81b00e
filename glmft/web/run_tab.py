"""The tab of runs: curves, where a run stands, what trains, its settings; a running one is read again and again."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
import pandas as pd

from glmft.web import drawing
from glmft.web.runs import Run, read_run, runs_in, stamp
from glmft.web.site import Site, sentence
from glmft.web.words import Say

EVERY = 2.0  # seconds between two looks at a run
SHARES = ("f1", "bleu-4-words")  # the other scores are in percent
SINGLE = ("learning_rate", "grad_norm", "tokens_per_second")


def frame(run: Run, names: dict[str, str]) -> pd.DataFrame:
    """Curves by their names in metrics.jsonl, under the names that the page has for them."""
    rows = [(step, value, shown) for name, shown in names.items() for step, value in run.curves.get(name, [])]
    return pd.DataFrame(rows, columns=["step", "value", "kind"])


def run_tab(page: gr.Blocks, site: Site, say: Say) -> tuple[Any, Any]:
    """Lay the tab out; the function that looks for runs anew, and what it fills."""
    names = runs_in(site.runs)
    with gr.Row(elem_classes="g-controls"):
        chosen = gr.Dropdown(
            names, value=names[0] if names else None, label=say("run_folder"), scale=5, elem_id="run-folder"
        )
        again = gr.Button(say("refresh"), scale=0, min_width=150, size="md", elem_id="run-refresh")
    state = gr.HTML(elem_id="run-state")

    def plot(title: str, *, coloured: bool = False, **more: Any) -> gr.LinePlot:
        return gr.LinePlot(
            x="step", y="value", color="kind" if coloured else None, title=say(title), height=230, min_width=300,
            x_title=say("optimizer_step"), y_title=" ", color_title=" ", **more,
        )  # fmt: skip

    with gr.Row():
        loss = plot("loss", coloured=True)
        scores = plot("scores", coloured=True, visible=False)
    with gr.Row():
        singles = [plot(name) for name in SINGLE]
    with gr.Row():
        with gr.Column(min_width=320):
            trained = gr.HTML(elem_id="trained")
        with gr.Column(min_width=320):
            settings = gr.HTML(elem_id="run-settings")
    seen, timer = gr.State(None), gr.Timer(EVERY)
    outputs = [state, loss, scores, *singles, trained, settings, seen]

    def look(name: str | None, before: Any) -> Sequence[Any]:
        """What changed since the last look."""
        if not name:
            return [drawing.note(say("no_runs")), *[gr.skip()] * (len(outputs) - 2), None]
        try:
            now = (name, *stamp(site.runs, name))
            if now == before:
                return [gr.skip()] * len(outputs)
            return [*pieces(read_run(site.runs, name), say), now]
        except Exception as error:
            return [drawing.note(sentence(error, say), "bad"), *[None] * 5, "", "", None]

    def relist(name: str | None) -> Any:
        there = runs_in(site.runs)
        return gr.Dropdown(choices=there, value=name if name in there else (there[0] if there else None))

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    gr.on([page.load, chosen.change, timer.tick], look, [chosen, seen], outputs, **hidden)
    again.click(relist, chosen, chosen, **hidden)
    return relist, chosen


def pieces(run: Run, say: Say) -> list[Any]:
    """A run as the components of the tab show it, in their order."""
    both = frame(run, {"loss": say("training"), "eval_loss": say("validation")})
    scores = frame(run, {name: name for name in run.scores})
    scores.loc[scores.kind.isin(SHARES), "value"] *= 100
    steps = ", ".join(map(str, run.checkpoints)) or "–"
    text = run.trained.strip() or say("not_told")
    trained = f'<h3 class="g-title">{say("what_trains")}</h3>{drawing.preformatted(text)}'
    trained += f'<h3 class="g-title">{say("checkpoints")}</h3>{drawing.note(steps)}'
    settings = drawing.pairs(run.settings, (say("setting"), say("value")))
    return [
        drawing.run_summary(run, say) + ("" if run.curves else drawing.note(say("no_curves"))),
        both,
        gr.LinePlot(scores, visible=bool(run.scores)),
        *(frame(run, {name: name}) for name in SINGLE),
        trained,
        f'<h3 class="g-title">{say("run_settings")}</h3>{settings}',
    ]
