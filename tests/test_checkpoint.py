import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from glmft import checkpoint as saved
from glmft.checkpoint import TrainerState, claim_output, damage, find_resume, publish
from glmft.errors import CheckpointError, ConfigError

ALONE = SimpleNamespace(rank=0, is_main=True, device=torch.device("cpu"))


def write(folder) -> None:
    (folder / "weights.txt").write_text("weights")


def save(folder, step: int):
    state = TrainerState(step=step, total_steps=9, loss_sum=1.5)
    return saved.save(folder, state, ALONE, write, {"exp_avg/w": torch.arange(3.0)})


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    torch.manual_seed(3)
    place = save(tmp_path, 4)
    drawn = torch.rand(5)
    assert place == tmp_path / "checkpoint-4"
    assert damage(place) is None
    assert saved.load_state(place) == TrainerState(step=4, total_steps=9, loss_sum=1.5)
    assert torch.equal(saved.load_optimizer(place)["exp_avg/w"], torch.arange(3.0))
    saved.restore_random_state(place, ALONE)
    assert torch.equal(torch.rand(5), drawn)


def test_the_manifest_lists_every_file_and_nothing_is_left_aside(tmp_path):
    place = save(tmp_path, 4)
    listed = set(json.loads((place / "manifest.json").read_text())["files"])
    assert listed == {p.name for p in place.iterdir()} - {"manifest.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "no manifest", "manifest torn"])
def test_every_kind_of_damage_is_seen(harm, tmp_path):
    place = save(tmp_path, 4)
    file = place / "optimizer.safetensors"
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
        (place / "manifest.json").write_text('{"files": ')
    assert str(place) in damage(place)


def test_resume_takes_the_newest_whole_checkpoint_and_warns_of_the_others(tmp_path):
    for step in (2, 4, 10):
        save(tmp_path, step)
    (tmp_path / "checkpoint-10" / "weights.txt").write_text("torn")
    found, said = find_resume(tmp_path, "yes")
    assert found == tmp_path / "checkpoint-4"
    assert len(said) == 1
    assert "checkpoint-10" in said[0]
    assert find_resume(tmp_path, "2") == (tmp_path / "checkpoint-2", [])


def test_resume_of_a_torn_or_absent_step_is_an_error_that_lists_what_there_is(tmp_path):
    save(tmp_path, 2)
    with pytest.raises(CheckpointError, match="there are: 2"):
        find_resume(tmp_path, "3")
    (tmp_path / "checkpoint-2" / "weights.txt").unlink()
    with pytest.raises(CheckpointError, match="resume from another step"):
        find_resume(tmp_path, "2")


def test_without_any_whole_checkpoint_resume_starts_from_the_beginning_and_says_so(tmp_path):
    found, said = find_resume(tmp_path, "yes")
    assert found is None
    assert "starting from the beginning" in said[-1]


def test_a_save_that_fails_leaves_the_checkpoints_before(tmp_path):
    save(tmp_path, 2)

    def full_disk(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"checkpoint-4: could not be saved \(No space left on device\)"):
        saved.save(tmp_path, TrainerState(step=4), ALONE, full_disk, {})
    assert find_resume(tmp_path, "yes")[0] == tmp_path / "checkpoint-2"


def test_an_output_folder_is_new_empty_or_claimed_by_a_flag(tmp_path):
    place = tmp_path / "a" / "b"
    claim_output(place, overwrite=False, resume=False)
    claim_output(place, overwrite=False, resume=False)
    (place / saved.RUN_CONFIG).write_text("{}")
    with pytest.raises(ConfigError, match="holds a run already"):
        claim_output(place, overwrite=False, resume=False)
    claim_output(place, overwrite=False, resume=True)
    assert (place / saved.RUN_CONFIG).is_file()
    claim_output(place, overwrite=True, resume=False)
    assert not any(place.iterdir())


@pytest.mark.parametrize("overwrite", [True, False])
def test_foreign_files_are_never_touched(overwrite, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no run of glmft"):
        claim_output(tmp_path, overwrite=overwrite, resume=False)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        claim_output(tmp_path / "out", overwrite=False, resume=False)


def test_published_files_replace_older_ones(tmp_path):
    (tmp_path / "result.txt").write_text("old")
    aside = tmp_path / ".aside"
    aside.mkdir()
    (aside / "result.txt").write_text("new")
    publish(aside, tmp_path)
    assert (tmp_path / "result.txt").read_text() == "new"
    assert not aside.exists()


def test_random_state_is_a_plain_tensor_file(tmp_path):
    assert set(load_file(save(tmp_path, 1) / "random-0.safetensors")) == {"cpu"}
