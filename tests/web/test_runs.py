"""A run folder as figures."""

import json
import os
import subprocess
import sys
import time

import pytest
from folders import make_run

from glmft.errors import ConfigError
from glmft.training.run_lock import locked
from glmft.web.places import Root
from glmft.web.runs import curves_of, read_run, runs_in, stamp, thinned


@pytest.fixture
def root(tmp_path) -> Root:
    make_run(tmp_path / "output" / "mine")
    return Root(tmp_path / "output", "--output_root")


def test_a_run_that_ended_too_early_shows_its_curves_settings_and_what_trains(root):
    run = read_run(root, "mine")
    assert run.state == "stopped"
    assert run.curves["loss"] == [(step, 3.0 / step) for step in range(1, 6)]
    assert run.curves["eval_loss"] == [(4, 0.9)]
    assert run.scores == ["rouge-1", "f1"]
    assert (run.step, run.total, run.checkpoints) == (5, 8, [4])
    assert run.settings["train_type"] == "lora"
    assert "lora_A" in run.trained


def test_a_run_with_results_is_finished(root):
    (root.path / "mine" / "train_results.json").write_text("{}")
    assert read_run(root, "mine").state == "finished"


def test_a_run_is_running_while_somebody_alive_has_its_folder(root):
    with locked(root.path / "mine"):
        assert read_run(root, "mine").state == "running"
    assert read_run(root, "mine").state == "stopped"


def test_the_lock_of_a_process_that_was_killed_is_no_sign_of_life(root):
    code = "import sys, os; from pathlib import Path; from glmft.training.run_lock import locked\n"
    code += "with locked(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(root.path / "mine")], check=False)
    assert (root.path / "mine" / ".lock").exists()
    assert read_run(root, "mine").state == "stopped"


def test_a_lock_from_another_host_that_was_not_renewed_is_no_sign_of_life(root):
    lock = root.path / "mine" / ".lock"
    lock.write_text("host=elsewhere\npid=1\n")
    assert read_run(root, "mine").state == "running"
    os.utime(lock, (time.time() - 100,) * 2)
    assert read_run(root, "mine").state == "stopped"


def test_the_stamp_changes_when_a_line_is_logged(root):
    before = stamp(root, "mine")
    assert stamp(root, "mine") == before
    with (root.path / "mine" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.1}\n')
    assert stamp(root, "mine") != before


def test_runs_are_listed_without_their_checkpoints(root):
    (root.path / "mine" / "checkpoint-4" / "train_config.json").write_text("{}")
    make_run(root.path / "group" / "other")
    assert sorted(runs_in(root)) == ["group/other", "mine"]


def test_a_folder_that_is_no_run_is_a_sentence(root):
    (root.path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"train_config\.json"):
        read_run(root, "empty")


def test_a_file_of_a_run_that_is_a_link_outwards_is_not_read(root):
    (root.path.parent / "secret.txt").write_text(json.dumps({"step": 1, "loss": 7.0}))
    (root.path / "mine" / "metrics.jsonl").unlink()
    (root.path / "mine" / "metrics.jsonl").symlink_to(root.path.parent / "secret.txt")
    with pytest.raises(ConfigError, match="leads out"):
        read_run(root, "mine")


def test_figures_that_are_no_finite_numbers_are_no_points():
    lines = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1, "grad_norm": None, "note": "x", "flag": True}]
    assert curves_of(lines) == {"loss": [(2, 1.0)]}


def test_a_resumed_run_counts_the_later_line_of_a_step():
    assert curves_of([{"step": 2, "loss": 5.0}, {"step": 1, "loss": 9.0}, {"step": 2, "loss": 4.0}])["loss"] == [
        (1, 9.0),
        (2, 4.0),
    ]


def test_a_long_curve_is_thinned_to_means_and_keeps_its_end():
    points = [(step, float(step)) for step in range(1, 1001)]
    short = thinned(points, 100)
    assert len(short) == 100
    assert short[0] == (10, 5.5)
    assert short[-1][0] == 1000
    assert thinned(points[:50], 100) == points[:50]
