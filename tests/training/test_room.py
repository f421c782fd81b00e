import shutil
from types import SimpleNamespace

import pytest
from torch import nn

from glmft.training import room
from glmft.training.room import fitting_limit, new_checkpoints, room_line, sizes

MODEL = nn.Linear(1 << 10, 1 << 8, bias=False)  # 1 MiB in fp32
WHOLE = 4 << 20  # weights, those to go on from, two moments


@pytest.fixture
def job(tmp_path):
    vocabulary = tmp_path / "tokenizer.model"
    vocabulary.touch()
    config = SimpleNamespace(save_total_limit=None)
    return SimpleNamespace(folder=tmp_path, tokenizer=SimpleNamespace(vocab_file=str(vocabulary)), config=config)


@pytest.fixture
def free(monkeypatch):
    def be(number: int) -> None:
        monkeypatch.setattr(room.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, number))

    return be


def test_a_checkpoint_holds_what_is_trained_the_weights_in_fp32_and_two_moments(job):
    assert sizes(MODEL, job.tokenizer) == (WHOLE, 1 << 20)


def test_a_disk_without_room_for_all_checkpoints_is_told_with_the_limit_that_fits(job, free):
    free(10 * WHOLE + (1 << 20))
    assert room_line(MODEL, job, 10) is None
    line = room_line(MODEL, job, 11)
    assert line.startswith("warning: 11 checkpoints and the result need 0.04 GiB, and ")
    assert "--save_total_limit 9 fits" in line
    job.config.save_total_limit = 9
    assert room_line(MODEL, job, 11) is None


def test_a_disk_without_room_for_two_has_no_limit_that_fits(job, free):
    free(WHOLE + (1 << 20))
    assert "not even --save_total_limit 1 fits" in room_line(MODEL, job, 5)


@pytest.mark.parametrize(
    ("saves", "there", "limit", "new"), [(10, 0, None, 10), (10, 0, 3, 4), (10, 2, 3, 2), (10, 3, 3, 1), (2, 0, 3, 2)]
)
def test_a_limit_holds_what_a_folder_grows_by(saves, there, limit, new):
    assert new_checkpoints(saves, there, limit) == new
    assert there == 3 or limit is None or fitting_limit(new * WHOLE, WHOLE, there) <= limit
