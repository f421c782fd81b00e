"""The tab of data: what a model would learn of a file."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from glmft.settings.tools import InspectConfig
from glmft.web import drawing
from glmft.web.records import Learned, chosen_file, data_files, histogram, read_learned
from glmft.web.site import Site, sentence
from glmft.web.words import Say

REMEMBERED = 4  # files as they were last read
TEMPLATES, LOSSES = ("default", "reference", "raw"), ("flagged", "all", "last", "combined")


class LearnedFiles:
    """Files as they are learned; the last few are kept in memory."""

    def __init__(self, site: Site):
        self.site, self.kept, self.lock = site, OrderedDict(), threading.Lock()

    def get(self, name: str | None, model: str, settings: dict[str, Any]) -> tuple[Learned, Any]:
        """A file as a model's tokenizer writes it, and that tokenizer. Raises ConfigError, DataError."""
        path, tokenizer = chosen_file(self.site.data, name), self.site.models[model].tokenizer
        given = {key: value for key, value in settings.items() if value}
        key = (path, path.stat().st_mtime_ns, model, *sorted(given.items()))
        with self.lock:
            if key not in self.kept:
                config = InspectConfig(**given, on_bad_record="skip")
                self.kept[key] = read_learned(path, config, tokenizer)
            self.kept.move_to_end(key)
            while len(self.kept) > REMEMBERED:
                self.kept.popitem(last=False)
            return self.kept[key], tokenizer


def data_tab(page: gr.Blocks, site: Site, say: Say) -> None:
    """Lay the tab out."""
    if not site.models.names or not data_files(site.data):
        gr.HTML(drawing.note(say("no_files" if site.models.names else "no_tokenizer")))
        return
    chosen, lengths = choices(site, say), limits(say)
    record = gr.HTML(elem_id="record")
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            plot = gr.BarPlot(
                x="length", y="rows", title=say("lengths"), x_title=say("length"), y_title=say("rows"), height=240
            )
        with gr.Column(scale=2, min_width=300):
            gr.HTML(f'<h3 class="g-title">{say("report")}</h3>')
            report = gr.HTML(elem_id="report")
    files = LearnedFiles(site)

    def show(name: str, row: float, of: str, *values: Any) -> tuple[Any, ...]:
        try:
            settings = dict(zip(("template", "loss_on", "max_len", "max_src_len"), values, strict=True))
            learned, tokenizer = files.get(name, of, settings)
            bins = histogram(learned.rows.lengths)
            frame = pd.DataFrame([((low + high) / 2, count) for low, high, count in bins], columns=["length", "rows"])
            lines = drawing.report(learned.report)
            try:
                return lines, frame, drawing.record(*learned.tokens(int(row or 0), tokenizer), say)
            except Exception as error:
                return lines, frame, drawing.note(sentence(error, say), "bad")
        except Exception as error:
            return "", None, drawing.note(sentence(error, say), "bad")

    file, number, model = chosen
    template, loss_on, *numbers = lengths
    inputs, outputs = [*chosen, *lengths], [report, plot, record]
    typed = [number.input, *(event for box in (number, *numbers) for event in (box.submit, box.blur))]
    picked = [box.change for box in (file, model, template, loss_on)]
    gr.on([page.load, *picked], show, inputs, outputs, api_visibility="private")
    gr.on(typed, show, inputs, outputs, api_visibility="private", show_progress="hidden")


def choices(site: Site, say: Say) -> list[Any]:
    """File, record, and the model whose tokenizer reads it."""
    names, models = list(data_files(site.data)), site.models.names
    first = next((name for name in names if "train" in Path(name).name), names[0])
    with gr.Row(elem_classes="g-controls"):
        return [
            gr.Dropdown(names, value=first, label=say("file"), scale=3, elem_id="data-file"),
            gr.Number(0, label=say("record"), precision=0, minimum=0, scale=1, min_width=120, elem_id="data-record"),
            gr.Dropdown(models, value=models[0], label=say("tokenizer_of"), scale=2, visible=len(models) > 1),
        ]


def limits(say: Say) -> list[Any]:
    """Template, answers that are learned, and the lengths."""
    defaults = InspectConfig()
    with gr.Row(elem_classes="g-controls"):
        return [
            gr.Dropdown(list(TEMPLATES), value="default", label=say("template"), min_width=140),
            gr.Dropdown(list(LOSSES), value="flagged", label=say("loss_on"), min_width=140),
            *(
                gr.Number(getattr(defaults, name) or 0, label=say(name), precision=0, minimum=0, min_width=120)
                for name in ("max_len", "max_src_len")
            ),
        ]
