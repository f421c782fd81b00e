import json
import random

import numpy as np
import pytest
import torch
from checkpoints import ALONE, save

from glmft.dist import World
from glmft.errors import CheckpointError
from glmft.files import remove_leftovers
from glmft.training.checkpoint import ResumePoint, damage, find_resume, open_optimizer, publishing
from glmft.training.random_state import restore_random_state
from glmft.training.run_folder import keep_checkpoints, point_best, rotate
from glmft.training.state import STATE, LogFigures, TrainerState, load_state
from glmft.weights import Shards, StoredTensors


def half_written(folder) -> None:
    (folder / "weights.txt").write_text("half")
    raise OSError(28, "No space left on device")


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    place = save(tmp_path, 4)
    drawn = torch.rand(5).tolist(), random.random(), np.random.rand()
    assert place == tmp_path / "checkpoint-4"
    assert damage(place) is None
    assert load_state(place) == TrainerState(step=4, total_steps=9, loss_sum=1.5)
    assert torch.equal(open_optimizer(place)["exp_avg/w"], torch.arange(3.0))
    restore_random_state(place, ALONE)
    assert (torch.rand(5).tolist(), random.random(), np.random.rand()) == drawn


def test_the_manifest_lists_every_file_and_nothing_is_left_aside(tmp_path):
    place = save(tmp_path, 4)
    listed = set(json.loads((place / "manifest.json").read_text())["files"])
    assert listed == {p.name for p in place.iterdir()} - {"manifest.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "no manifest", "manifest torn", "empty"])
def test_every_kind_of_damage_is_seen(harm, tmp_path):
    place = save(tmp_path, 4)
    file = place / "optimizer-00001.safetensors"
    data = file.read_bytes()
    if harm == "truncate":
        file.write_bytes(data[:-1])
    elif harm == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "remove":
        file.unlink()
    elif harm == "no manifest":
        (place / "manifest.json").unlink()
    else:
        (place / "manifest.json").write_text('{"files": ' + ("{}}" if harm == "empty" else ""))
    assert str(place) in damage(place)


def test_resume_takes_the_newest_whole_checkpoint_and_warns_of_the_others(tmp_path):
    for step in (2, 4, 10):
        save(tmp_path, step)
    (tmp_path / "checkpoint-10" / "weights.txt").write_text("torn")
    newest = find_resume(tmp_path, "yes")
    assert newest.checkpoint == tmp_path / "checkpoint-4"
    assert len(newest.messages) == 1
    assert "checkpoint-10" in newest.messages[0]
    second = find_resume(tmp_path, "2")
    assert second.checkpoint == tmp_path / "checkpoint-2"


def test_resume_of_a_torn_or_absent_step_is_an_error_that_lists_what_there_is(tmp_path):
    save(tmp_path, 2)
    with pytest.raises(CheckpointError, match="there are: 2"):
        find_resume(tmp_path, "3")
    (tmp_path / "checkpoint-2" / "weights.txt").unlink()
    with pytest.raises(CheckpointError, match="resume from another step"):
        find_resume(tmp_path, "2")


def test_without_any_whole_checkpoint_resume_starts_from_the_beginning_and_says_so(tmp_path):
    start = find_resume(tmp_path, "yes")
    assert start.checkpoint is None
    assert "starting from the beginning" in start.messages[-1]


def test_a_save_that_fails_leaves_the_checkpoints_before(tmp_path):
    save(tmp_path, 2)

    full = r"checkpoint-4: could not be saved \(No space left on device\)"
    with pytest.raises(CheckpointError, match=full), publishing(tmp_path / "checkpoint-4", ALONE) as aside:
        half_written(aside)
    assert find_resume(tmp_path, "yes") == ResumePoint(tmp_path / "checkpoint-2")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]


def test_published_files_replace_older_ones(tmp_path):
    (tmp_path / "weights.txt").write_text("old")
    with publishing(tmp_path, ALONE, into=True) as aside:
        (aside / "weights.txt").write_text("weights")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"weights.txt": "weights"}


def test_what_cannot_be_published_leaves_the_older_files(tmp_path):
    (tmp_path / "weights.txt").write_text("old")

    full = "No space left on device"
    with pytest.raises(CheckpointError, match=full), publishing(tmp_path, ALONE, into=True) as aside:
        half_written(aside)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"weights.txt": "old"}


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [2, 4, 6, 8]),
        (2, None, [6, 8]),
        (2, 4, [4, 8]),
        (1, 4, [4, 8]),
        (3, 8, [4, 6, 8]),
        (9, None, [2, 4, 6, 8]),
    ],
)
def test_old_checkpoints_go_and_the_newest_and_the_best_stay(limit, best, kept, tmp_path):
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    rotate(tmp_path, limit, best)
    assert sorted(int(p.name.split("-")[1]) for p in tmp_path.iterdir()) == kept


def test_best_leads_to_a_checkpoint_and_moves_in_one_step(tmp_path):
    for step in (2, 4):
        point_best(tmp_path, save(tmp_path, step) and step)
        assert (tmp_path / "best").resolve() == tmp_path / f"checkpoint-{step}"
    assert find_resume(tmp_path, "yes").checkpoint == tmp_path / "checkpoint-4"


def test_what_a_kill_left_half_written_is_cleaned_up(tmp_path):
    save(tmp_path, 2)
    (tmp_path / ".writing-checkpoint-4").mkdir()
    (tmp_path / ".deleting-checkpoint-1").mkdir()
    (tmp_path / ".writing-loss.png").write_text("")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]


def test_tensors_are_written_in_shards_and_read_one_by_one(tmp_path):
    shards = Shards(tmp_path, "optimizer", size=20)
    tensors = {f"t{i}": torch.full((3,), float(i)) for i in range(4)}
    for name, tensor in tensors.items():
        shards.add(name, tensor)
    shards.close()
    assert len(list(tmp_path.iterdir())) == 4
    stored = StoredTensors(tmp_path.iterdir())
    assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())
    assert set(stored) == set(tensors)


def test_sums_since_the_last_log_line_travel_with_the_state():
    state = TrainerState()
    state.add(6.0, supervised=3, tokens=10)
    assert state.loss_sum == 0
    state.add(2.0, supervised=1, tokens=5)
    assert state.take() == LogFigures(2.0, supervised=4, tokens=15)
    assert (state.loss_sum, state.supervised, state.tokens, state.last_loss) == (8.0, 4, 15, 2.0)
    assert state.take() == LogFigures(0.0, supervised=0, tokens=0)


def test_a_state_of_an_older_version_goes_on_and_that_of_another_program_is_refused(tmp_path):
    (tmp_path / STATE).write_text('{"step": 7, "total_steps": 9, "of_an_older_version": 1}')
    assert load_state(tmp_path) == TrainerState(step=7, total_steps=9)
    (tmp_path / STATE).write_text('{"global_step": 7, "max_steps": 9}')
    with pytest.raises(CheckpointError, match=r"trainer_state\.json: is no state of a run of glmft"):
        load_state(tmp_path)


def test_a_mean_loss_is_that_of_a_supervised_token():
    state = TrainerState()
    for loss, supervised in ((4.0, 2), (0.5, 1), (1.5, 3)):
        state.add(loss, supervised, tokens=10)
    assert state.step == 3
    assert state.take().loss == pytest.approx(6.0 / 6)
    state.add(0.0, 0, 10)
    assert (state.take().loss, state.tokens) == (0.0, 40)


def test_the_link_to_the_best_and_the_oldest_go_with_each_save(tmp_path):
    for step in (2, 4, 6):
        save(tmp_path, step)
    keep_checkpoints(tmp_path, ALONE, limit=2, best=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoint-4", "checkpoint-6"]
    assert (tmp_path / "best").resolve() == tmp_path / "checkpoint-4"
    keep_checkpoints(tmp_path, ALONE, limit=2, best=8)  # not saved: the link stays
    assert (tmp_path / "best").resolve() == tmp_path / "checkpoint-4"
    others = World(1, 1, 2, torch.device("cpu"), torch.float32)
    keep_checkpoints(tmp_path, others, limit=1, best=None)  # another rank leaves the files alone
    assert (tmp_path / "checkpoint-4").is_dir()
