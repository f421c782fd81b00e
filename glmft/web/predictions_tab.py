"""The tab of predictions: question, label, answer and scores of every record."""

from typing import Any

import gradio as gr

from glmft.web import drawing
from glmft.web.answers import MOST_ROWS, Predictions, predictions_in, read_predictions, with_questions
from glmft.web.site import Site, sentence
from glmft.web.words import Say

LONGEST_CELL = 160  # characters


def predictions_tab(page: gr.Blocks, site: Site, say: Say) -> tuple[Any, Any]:
    """Lay the tab out; the function that looks for predictions anew, and what it fills."""
    names = predictions_in(site.runs)
    with gr.Row(elem_classes="g-controls"):
        chosen = gr.Dropdown(
            names,
            value=names[0] if names else None,
            label=say("prediction_folder"),
            scale=5,
            elem_id="prediction-folder",
        )
        again = gr.Button(say("refresh"), scale=0, min_width=150, size="md")
    about = gr.HTML(elem_id="predictions-about")
    table = gr.Dataframe(
        elem_id="predictions", interactive=False, wrap=True, max_chars=LONGEST_CELL, max_height=560, type="array",
        show_search="filter", buttons=[],
    )  # fmt: skip
    whole = gr.HTML(elem_id="prediction")
    kept = gr.State(None)

    def show(name: str | None) -> tuple[Any, ...]:
        if not name:
            return drawing.note(say("no_predictions")), gr.Dataframe(visible=False), "", None
        try:
            predictions, source = with_questions(read_predictions(site.runs, name), site.data_paths())
        except Exception as error:
            return drawing.note(sentence(error, say), "bad"), gr.Dataframe(visible=False), "", None
        notes = [say("click_row")]
        notes += [say("first_rows").format(MOST_ROWS)] if predictions.is_cut else []
        asked = any(row.question for row in predictions.rows)
        if source is not None or not asked:
            notes.append(say("questions_from").format(source.name) if source else say("no_questions"))
        means = {key: drawing.number(value) for key, value in predictions.means.items()}
        head = drawing.tiles(means) if means else ""
        return head + drawing.note(" ".join(notes)), sheet(predictions, say), "", predictions

    def open_row(predictions: Predictions | None, event: gr.SelectData) -> str:
        row = (
            next((r for r in predictions.rows if str(r.number) == str(event.row_value[0])), None)
            if predictions
            else None
        )
        if row is None:
            return ""
        texts = {say("question_column"): row.question, say("label"): row.label, say("answer"): row.answer}
        return drawing.answered({**texts, **{k: drawing.number(v) for k, v in row.scores.items()}}, say)

    def relist(name: str | None) -> Any:
        there = predictions_in(site.runs)
        return gr.Dropdown(choices=there, value=name if name in there else (there[0] if there else None))

    gr.on([page.load, chosen.change], show, chosen, [about, table, whole, kept],
          api_visibility="private")  # fmt: skip
    table.select(open_row, kept, whole, api_visibility="private", show_progress="hidden")
    again.click(relist, chosen, chosen, api_visibility="private", show_progress="hidden")
    return relist, chosen


def sheet(predictions: Predictions, say: Say) -> gr.Dataframe:
    """The table of all records."""
    scores = predictions.score_names
    headers = [say("number"), say("question_column"), say("label"), say("answer"), *scores]
    rows = [
        [row.number, row.question, row.label, row.answer, *(row.scores.get(name) for name in scores)]
        for row in predictions.rows
    ]
    kinds = ["number", "str", "str", "str", *["number"] * len(scores)]
    widths = ["56px", "260px", "200px", "200px", *["92px"] * len(scores)]
    return gr.Dataframe(rows, headers=headers, datatype=kinds, column_widths=widths, visible=True)
