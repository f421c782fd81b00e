"""The training benchmark: its arms compute the same, and one that does not gets no figures."""

import dataclasses
import json

import pytest
import torch

from benchmarks.training import __main__ as bench
from benchmarks.training import columns
from benchmarks.training.arms import ARMS, expert_loss
from benchmarks.training.columns import COLUMNS, DATA, GATE, Case, Padding, our_model, steps_of, their_model
from benchmarks.training.report import Results
from benchmarks.training.startup import import_parts
from benchmarks.training.table import Figures, cases_of, differences, measure_column, real_tokens
from glmft.data.collate import collate, one_row

SIZES = {"hidden": 64, "layers": 2, "words": 64, "data": DATA, "steps": 2, "longest": 40}


@pytest.mark.parametrize("column", ["lora", "ptuning", "freeze"])
def test_transformers_model_with_converted_weights_learns_what_ours_does(column):
    """Loss and, of what trains, the norm of all gradients."""
    case = Case(column, "glmft", **SIZES)
    rows, ours, theirs = steps_of(case, "grouped")[0][0], our_model(case), their_model(case)
    with torch.no_grad():
        for name, parameter in [*ours.named_parameters(), *theirs.named_parameters()]:
            if "lora_B" in name:
                parameter.fill_(0.01)
    losses = [
        ours(**one_row(rows, Padding(case.first_position)), num_items_in_batch=1).loss,
        expert_loss(theirs, collate(rows, Padding()), case.first_position),
    ]
    for loss in losses:
        loss.backward()
    norms = [torch.nn.utils.get_total_norm([p.grad for p in columns.trained(model)]).item() for model in (ours, theirs)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    assert norms[0] == pytest.approx(norms[1], rel=2e-5)


def test_all_orders_have_the_same_records_in_the_first_steps_and_the_same_tokens_in_all():
    case = Case("lora", "glmft", **SIZES)
    orders = {order: steps_of(case, order) for order in ("file", "grouped", "packed")}
    assert len({sum(map(real_tokens, steps)) for steps in orders.values()}) == 1
    for steps in zip(*(steps[:GATE] for steps in orders.values()), strict=True):
        assert len({tuple(sorted(i for rows in step for row in rows for i in row.ids)) for step in steps}) == 1


def test_rows_of_the_grouped_order_are_of_like_length():
    def spread(order):
        steps = steps_of(dataclasses.replace(Case("lora", "glmft", **SIZES), steps=8), order)[GATE:]
        return sum(max(map(len_of, rows)) - min(map(len_of, rows)) for step in steps for rows in step)

    len_of = lambda row: len(row.ids)  # noqa: E731
    assert spread("grouped") < spread("file") / 2


def test_an_arm_whose_losses_leave_those_of_the_first_is_named_with_the_step():
    right = [11.1, 11.0, 10.9]
    problems = differences({"plain": right, "same": [11.1, 11.0, 10.90001], "wrong": [11.1, 11.01, 10.9]})
    assert list(problems) == ["wrong"]
    assert "in step 2" in problems["wrong"]
    assert differences({"plain": right, "broken": [float("nan")] * 3}).keys() == {"broken"}


def test_figures_that_lack_leave_their_place_empty(tmp_path):
    found = {"plain": Figures([1.0], 2.0, 1000, 50.0), "glmft": Figures([1.0], 0.5, 1000, 25.0)}
    lost = {"plain": Figures([1.0], 1.0, 1000, 50.0), "glmft": Figures(problem="RuntimeError: out of luck")}
    sizes = {**SIZES, "data": "train.json"}
    results = Results(tmp_path, "python -m benchmarks.training", sizes, {"lora": found, "freeze": lost})
    results.write()
    table = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| glmft | 0.500 | – |" in table
    assert "| the plain loop over glmft | 4.0x | – |" in table
    assert "- glmft (freeze): RuntimeError: out of luck" in table
    assert json.loads((tmp_path / "results.json").read_text())["columns"]["lora"]["glmft"]["ms_per_token"] == 0.5


def test_import_times_are_summed_by_package():
    log = "import time: self [us] | cumulative | imported package\nimport time: 250000 | 900000 | torch\n"
    log += (
        "a line of something else\nimport time:  500000 |   500000 |   torch._C\nimport time: 250000 | 250000 | numpy\n"
    )
    assert import_parts(log) == pytest.approx({"torch": 0.75, "numpy": 0.25, "everything else": 0.0})


@pytest.mark.slow
def test_the_whole_table_is_made_at_a_small_size(tmp_path):
    sizes = ["--hidden", "64", "--layers", "2", "--words", "256", "--steps", "2", "--longest", "64"]
    assert bench.main([*sizes, "--output_dir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    for column in COLUMNS:
        arms = results["columns"][column]
        assert set(arms) == {name for name, arm in ARMS.items() if arm.is_in(column)}
        assert all(figures["ms_per_token"] > 0 and len(figures["losses"]) == GATE for figures in arms.values())
        assert len({figures["tokens"] for figures in arms.values()}) == 1
    assert results["start"]["first_step"] > results["start"]["step"] > 0
    assert "torch" in results["start"]["parts"]
    assert "## Start of a run" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_arm_that_computes_something_else_or_fails_has_no_figures_and_the_others_go_on(tmp_path):
    cases = cases_of("lora", ["plain", "torch", "padded", "deepspeed"], **SIZES)
    cases["torch"] = dataclasses.replace(cases["torch"], longest=30)  # other rows
    cases["padded"] = dataclasses.replace(cases["padded"], data=tmp_path / "nothing.json")
    found = measure_column(cases, tmp_path, seconds=120)
    assert "computes something else" in found["torch"].problem
    assert "FileNotFoundError" in found["padded"].problem
    assert all(found[name].problem is None and found[name].milliseconds > 0 for name in ("plain", "deepspeed"))
