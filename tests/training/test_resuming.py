"""A resume says where it goes on and what has changed, and refuses what could not go on."""

import dataclasses
import json

import pytest
import torch

from glmft.errors import CheckpointError
from glmft.settings.config import TrainConfig, to_json
from glmft.training.resuming import (
    changed_settings,
    finished_line,
    finished_result,
    going_on,
    require_parameters,
    require_same,
)
from glmft.training.saving import TrainResult
from glmft.training.state import TrainerState

RESULT = TrainResult("out", 6, 1.5, 1.25, 9.0, 100, 20, 1 << 40, 10, 90)


@pytest.fixture
def finished(tmp_path):
    """A finished run's folder, as far as it is looked at, and its last checkpoint."""
    place = tmp_path / "checkpoint-6"
    place.mkdir()
    for folder in (tmp_path, place):
        (folder / "glmft_adapter.json").write_text("{}")
    (place / "optimizer-00001.safetensors").write_text("moments")
    (place / "train_config.json").write_text(to_json(TrainConfig(max_steps=6)))
    (tmp_path / "train_results.json").write_text(json.dumps(dataclasses.asdict(RESULT)))
    return tmp_path, place


def test_a_resume_says_from_where_to_where_and_what_has_changed(finished):
    config = TrainConfig(max_steps=9, learning_rate=5e-4, train_path="new.json", resume="yes", output_dir="elsewhere")
    assert going_on(finished[1], TrainerState(step=6, total_steps=9), config) == [
        "going on from checkpoint-6 of 9 steps",
        "changed since checkpoint-6: train_path none -> new.json, learning_rate 0.001 -> 0.0005, max_steps 6 -> 9",
    ]
    same = TrainConfig(max_steps=6, verbose=True)
    assert going_on(finished[1], TrainerState(step=6, total_steps=9), same) == ["going on from checkpoint-6 of 9 steps"]


def test_settings_that_were_not_there_before_have_not_changed():
    assert changed_settings({"seed": 1234, "gone": 3}, TrainConfig(max_steps=9)) == []
    assert changed_settings({"seed": {"a": "x" * 999}}, TrainConfig())[0].endswith(" -> 1234")


@pytest.mark.parametrize(("recorded", "now"), [(True, "full"), (False, "off")])
def test_gradient_checkpointing_that_older_runs_recorded_as_a_truth_is_no_change(recorded, now):
    assert changed_settings({"gradient_checkpointing": recorded}, TrainConfig(gradient_checkpointing=now)) == []


def test_many_changes_are_counted(finished):
    other = {f.name: 3 for f in dataclasses.fields(TrainConfig) if f.name.startswith(("lora", "max", "prompt"))}
    lines = going_on(finished[1], TrainerState(step=6, total_steps=9), TrainConfig(**other))
    assert lines[1].endswith(" more")


def test_a_finished_run_gives_its_result_and_says_so(finished):
    folder, place = finished
    state = TrainerState(step=6, total_steps=6)
    assert finished_result(folder, place, state) == RESULT
    assert "is finished: 6 of 6 steps, and" in finished_line(folder, state)
    assert "6 of 9 steps, stopped early" in finished_line(folder, TrainerState(step=6, total_steps=9))


@pytest.mark.parametrize("harm", ["gone", "torn", "other", "step", "type", "missing", "no json"])
def test_a_run_whose_end_is_not_all_there_is_not_finished(harm, finished):
    folder, place = finished
    results = dataclasses.asdict(RESULT)
    if harm == "gone":
        (folder / "glmft_adapter.json").unlink()
    elif harm == "torn":
        (folder / "glmft_adapter.json").write_text("")
    elif harm == "missing":
        (folder / "train_results.json").unlink()
    else:
        wrong = {"other": {"x": 1}, "step": {"steps": 5}, "type": {"tokens": "many"}, "no json": {}}[harm]
        text = json.dumps(results | wrong) if harm != "no json" else "{"
        (folder / "train_results.json").write_text(text)
    assert finished_result(folder, place, TrainerState(step=6, total_steps=6)) is None


def test_what_the_order_of_the_rows_follows_from_must_be_the_same(tmp_path):
    state = {"window": 4, "seed": 7}
    require_same(state | {"more": 1}, {"window": 4, "new": 3}, tmp_path)
    require_same(state, {"window": 4, "seed": 7}, tmp_path)
    with pytest.raises(CheckpointError, match="seed was 7, now it is 8; give the same settings"):
        require_same(state, {"window": 4, "seed": 8}, tmp_path)


def test_what_trains_must_be_what_was_trained():
    stored = {f"{key}/w": torch.zeros(2, 3) for key in ("param", "exp_avg", "exp_avg_sq")}
    require_parameters({"w": [2, 3]}, stored)
    with pytest.raises(CheckpointError, match="w has another shape in the checkpoint"):
        require_parameters({"w": [3, 2]}, stored)
    for trained in ({"v": [2, 3]}, {"w": [2, 3], "v": [1]}, {}):
        with pytest.raises(CheckpointError, match="trained other parameters"):
            require_parameters(trained, stored)
