import json
import sys

import pytest
import torch

from glmft.dist import World
from glmft.errors import ConfigError
from glmft.training import tracking
from glmft.training.state import LogFigures
from glmft.training.tracking import Tracker, check_reporters, clock, forget_after, read_metrics

ALONE = World(0, 0, 1, torch.device("cpu"), torch.float32)
OTHER = World(1, 1, 2, torch.device("cpu"), torch.float32)


def filled(folder, world=ALONE, **more) -> Tracker:
    tracker = Tracker(folder, world, 0, 20, steps_per_epoch=4, **more)
    tracker.advance()
    tracker.log_step(10, LogFigures(2.5, supervised=40, tokens=100), rate=1e-3, norm=0.5)
    tracker.log_evaluation(10, {"eval_loss": 2.0})
    tracker.close()
    return tracker


def test_figures_go_into_lines_a_file_tensorboard_and_a_picture(tmp_path, capsys):
    filled(tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("step 10/20  epoch 2.50  loss 2.5000  lr 1.00e-03  grad norm 0.500  ")
    assert "supervised)" in said[0]
    assert "GiB" in said[0]
    assert said[0].endswith(" left")
    assert said[1] == "step 10/20  validation: eval_loss 2.0000"
    figures = read_metrics(tmp_path / "metrics.jsonl")
    assert (figures[0]["loss"], figures[0]["grad_norm"], figures[1]) == (2.5, 0.5, {"step": 10, "eval_loss": 2.0})
    assert figures[0]["peak_memory_bytes"] > 1e6
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval_loss")] == [(10, 2.0)]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_other_ranks_write_nothing(tmp_path, capsys):
    filled(tmp_path, OTHER)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_on_a_terminal_one_bar_carries_the_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    filled(tmp_path)
    said = capsys.readouterr()
    assert "step 10/20  loss" not in said.out
    assert "1/20" in said.err
    assert "epoch 2.50  loss 2.5000  lr 1.00e-03  grad norm 0.500" in said.err
    assert "validation: eval_loss 2.0000" in said.out


def test_a_resumed_run_forgets_the_lines_it_will_write_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in (2, 4, 6)) + '{"step": 8, "lo')
    forget_after(path, 4)
    assert read_metrics(path) == [{"step": 2}, {"step": 4}]


def test_a_full_disk_costs_figures_and_is_told_once(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking, "draw_losses", full)
    filled(tmp_path)
    said = capsys.readouterr().out
    assert said.count(f"warning: figures cannot be written into {tmp_path} (No space left on device)") == 1


def test_trackers_that_are_unknown_or_not_installed_are_named():
    with pytest.raises(ConfigError) as error:
        check_reporters(["wandbb", "aim"])
    assert error.value.problems == [
        "--report_to wandbb: is none of aim, comet_ml, mlflow, wandb, clearml, dvclive, swanlab, trackio",
        "--report_to aim: is not installed; pip install aim",
    ]


def test_further_trackers_get_settings_and_figures(tmp_path, monkeypatch):
    """Those that accelerate knows; here one of a test's own."""
    from accelerate import tracking as accelerates
    from accelerate.tracking import GeneralTracker

    got = []

    class Fake(GeneralTracker):
        name, requires_logging_directory, main_process_only, tracker = "fake", True, False, None

        def __init__(self, run_name, logging_dir):
            super().__init__()
            got.append((run_name, logging_dir))

        def store_init_configuration(self, values):
            got.append(values)

        def log(self, values, step):
            got.append((step, values))

        def finish(self):
            got.append("finished")

    monkeypatch.setitem(accelerates.LOGGER_TYPE_TO_CLASS, "fake", Fake)
    filled(tmp_path, report_to=["fake"], settings={"seed": 3, "val_path": None})
    assert got[:2] == [("glmft", str(tmp_path)), {"seed": 3}]
    assert got[2][0] == 10
    assert got[2][1]["loss"] == 2.5
    assert got[3:] == [(10, {"eval_loss": 2.0}), "finished"]


def test_a_clock_shows_hours_minutes_and_seconds():
    assert [clock(s) for s in (5, 65, 3725)] == ["0:00:05", "0:01:05", "1:02:05"]


@pytest.mark.parametrize(("losses", "scale"), [([4.0, 0.5], "linear"), ([4.0, 0.4], "log"), ([4.0, 0.0], "linear")])
def test_a_loss_that_spans_a_power_of_ten_gets_a_logarithmic_axis_and_validation_its_curve(
    losses, scale, tmp_path, monkeypatch
):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.touch()))
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses)] + [{"step": 1, "eval_loss": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tracking.draw_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    [axes] = drawn[0].axes
    assert axes.get_yscale() == scale
    assert [line.get_label() for line in axes.lines] == ["training", "validation"]
