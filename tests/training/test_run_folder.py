"""Whose an output folder is, and what makes way for a new run or a new line; kills before every change of a file."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoints import ALONE, save

from glmft.dist import World
from glmft.errors import ConfigError
from glmft.training import run_lock
from glmft.training.checkpoint import checkpoints, find_resume
from glmft.training.run_folder import claimed, keep_checkpoints, point_best
from glmft.training.run_lock import LOCK, locked
from glmft.training.set_aside import RUN_CONFIG, drop_old_run, leave_line, recover, set_run_aside


class Killed(BaseException):
    """Nothing that the code could catch or tidy up after."""


@contextlib.contextmanager
def killed_before(change: int, monkeypatch):
    """Before the given change to the file system, counted from 0, the process ends; yields whether it came so far."""
    count, came = 0, []

    def counted(real):
        def changed(*args, **options):
            nonlocal count
            count += 1
            if came or count > change:
                came.append(True)
                raise Killed
            return real(*args, **options)

        return changed

    with monkeypatch.context() as patch:
        for module, name in ((os, "replace"), (os, "unlink"), (os, "mkdir"), (os, "rmdir"), (shutil, "rmtree")):
            patch.setattr(module, name, counted(getattr(module, name)))
        for name in ("unlink", "mkdir", "rmdir", "write_text", "symlink_to"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        with contextlib.suppress(Killed):
            yield came


def old_run(folder: Path, steps=(2, 4, 6, 8)) -> Path:
    """A run that has finished, with files of its user."""
    folder.mkdir()
    for step in steps:
        save(folder, step)
    point_best(folder, 6)
    (folder / RUN_CONFIG).write_text('{"seed": 1}')
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in steps))
    (folder / "weights.txt").write_text("weights at the end")
    (folder / "train_results.json").write_text('{"steps": 8}')
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events").write_text("events")
    (folder / "notes.txt").write_text("mine")
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Every file and link below, but for what is still half written or half deleted."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and not name.startswith((".writing-", ".deleting-")):
            found[name] = path.read_bytes().decode("latin-1")
    return found


def new_start(folder: Path) -> None:
    """What a run has written before its first checkpoint."""
    (folder / RUN_CONFIG).write_text('{"seed": 2}')
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "other").write_text("events")


# ------------------------------------------------------------------------------------------ a run that is replaced


def test_a_run_comes_back_whenever_the_one_to_replace_it_is_killed(tmp_path, monkeypatch):
    want, change, ended = contents(old_run(tmp_path / "old")), 0, False
    while not ended:
        folder = tmp_path / f"out{change}"
        shutil.copytree(tmp_path / "old", folder, symlinks=True)
        with killed_before(change, monkeypatch) as came:
            set_run_aside(folder)
            new_start(folder)
        ended = not came
        recover(folder)
        assert contents(folder) == want, change
        change += 1
    assert change > 15


def test_a_run_comes_back_though_its_return_is_killed_too(tmp_path, monkeypatch):
    want, change, ended = contents(old_run(tmp_path / "old")), 0, False
    while not ended:
        folder = tmp_path / f"out{change}"
        shutil.copytree(tmp_path / "old", folder, symlinks=True)
        set_run_aside(folder)
        new_start(folder)
        with killed_before(change, monkeypatch) as came:
            recover(folder)
        ended = not came
        recover(folder)
        assert contents(folder) == want, change
        change += 1
    assert change > 15


def test_a_run_goes_once_the_new_one_has_a_whole_checkpoint(tmp_path, monkeypatch):
    old_run(tmp_path / "old")
    for change in range(6):
        folder = tmp_path / f"out{change}"
        shutil.copytree(tmp_path / "old", folder, symlinks=True)
        set_run_aside(folder)
        new_start(folder)
        save(folder, 3)
        want = {name: text for name, text in contents(folder).items() if not name.startswith(".old-run")}
        with killed_before(change, monkeypatch):
            drop_old_run(folder)
        assert recover(folder) == []
        assert contents(folder) == want
        assert list(checkpoints(folder)) == [3]


def test_a_torn_first_checkpoint_does_not_count(tmp_path):
    folder = old_run(tmp_path / "out")
    want = contents(folder)
    set_run_aside(folder)
    new_start(folder)
    (save(folder, 3) / "weights.txt").write_text("torn")
    assert "the run before is back" in recover(folder)[0]
    assert contents(folder) == want


def test_the_report_on_what_ended_the_new_run_stays(tmp_path):
    folder = old_run(tmp_path / "out")
    (folder / "bad_batch.json").write_text("old")
    set_run_aside(folder)
    new_start(folder)
    (folder / "bad_batch.json").write_text("new")
    recover(folder)
    assert (folder / "bad_batch.json").read_text() == "new"
    assert (folder / "weights.txt").read_text() == "weights at the end"


# ----------------------------------------------------------------------------------------------- a line that is left


def test_going_back_sets_the_later_checkpoints_aside_and_keeps_them(tmp_path):
    folder = old_run(tmp_path / "out")
    before = contents(folder)
    [line] = leave_line(folder, 4)
    assert line.startswith("going back to step 4: checkpoint-6, checkpoint-8 of the line before are kept in ")
    assert line.endswith("/set-aside-1")
    assert list(checkpoints(folder)) == [2, 4]
    aside = contents(folder / "set-aside-1")
    assert list(checkpoints(folder / "set-aside-1")) == [6, 8]
    assert find_resume(folder, "yes").checkpoint == folder / "checkpoint-4"
    for name in (RUN_CONFIG, "metrics.jsonl", "weights.txt", "train_results.json"):
        assert aside[name] == before[name]
    assert (folder / "set-aside-1" / "best").resolve() == folder / "set-aside-1" / "checkpoint-6"
    assert not (folder / "best").is_symlink()
    assert not (folder / "train_results.json").exists()  # only a finished run has one
    assert (folder / "notes.txt").read_text() == "mine"
    assert leave_line(folder, 4) == []
    save(folder, 5)
    assert leave_line(folder, 2)[0].endswith("set-aside-2")
    assert list(checkpoints(folder / "set-aside-2")) == [4, 5]


def test_a_kill_while_going_back_leaves_the_old_line_or_the_new_one_and_loses_nothing(tmp_path, monkeypatch):
    before, change, ended, lines = contents(old_run(tmp_path / "old")), 0, False, set()
    while not ended:
        folder = tmp_path / f"out{change}"
        shutil.copytree(tmp_path / "old", folder, symlinks=True)
        with killed_before(change, monkeypatch) as came:
            leave_line(folder, 4)
        ended = not came
        with killed_before(change // 2, monkeypatch):
            recover(folder)
        recover(folder)
        steps = list(checkpoints(folder))
        lines.add(tuple(steps))
        now = contents(folder)
        if steps == [2, 4]:
            aside = contents(folder / "set-aside-1")
            assert list(checkpoints(folder / "set-aside-1")) == [6, 8]
            lost = {name for name, text in before.items() if now.get(name, aside.get(name)) != text}
            assert not lost, change
        else:
            assert now == before, change
        change += 1
    assert lines == {(2, 4, 6, 8), (2, 4)}
    assert change > 10


def test_torn_later_checkpoints_make_way_too(tmp_path):
    folder = old_run(tmp_path / "out")
    (folder / "checkpoint-8" / "weights.txt").write_text("torn")
    resume = find_resume(folder, "yes")
    assert resume.checkpoint == folder / "checkpoint-6"
    leave_line(folder, 6)
    save(folder, 7)
    keep_checkpoints(folder, ALONE, 1, None)
    assert list(checkpoints(folder)) == [7]


def test_a_link_best_that_leads_nowhere_goes(tmp_path):
    folder = old_run(tmp_path / "out")
    shutil.rmtree(folder / "checkpoint-6")
    point_best(folder, None)
    assert not (folder / "best").is_symlink()


# ---------------------------------------------------------------------------------------------------- whose it is


def test_a_new_folder_is_gone_again_if_no_run_begins_in_it(tmp_path):
    with claimed(tmp_path / "a" / "b", overwrite=False, resume=False):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
    assert not list(tmp_path.iterdir())


def test_a_folder_with_leftovers_of_a_kill_is_free(tmp_path):
    (tmp_path / ".writing-checkpoint-4").mkdir()
    with claimed(tmp_path, overwrite=False, resume=False):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_resuming_where_nothing_is_starts_a_folder(tmp_path):
    with claimed(tmp_path / "new", overwrite=False, resume=True):
        assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize(("overwrite", "resume"), [(True, False), (False, True)])
def test_a_run_that_does_not_begin_leaves_the_folder_as_it_was(overwrite, resume, tmp_path):
    folder = old_run(tmp_path / "out")
    before = contents(folder)
    with pytest.raises(KeyError), claimed(folder, overwrite, resume):
        raise KeyError
    assert contents(folder) == before
    with pytest.raises(ConfigError, match="holds a run already"), claimed(folder, False, False):
        pass
    assert contents(folder) == before


def test_a_run_that_begins_and_fails_gives_the_folder_back(tmp_path, capsys):
    folder = old_run(tmp_path / "out")
    before = contents(folder)
    with claimed(folder, overwrite=True, resume=False):
        set_run_aside(folder)
        new_start(folder)
    assert contents(folder) == before
    assert "the run before is back" in capsys.readouterr().out


@pytest.mark.parametrize("overwrite", [True, False])
def test_foreign_files_are_never_touched(overwrite, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no run of glmft"), claimed(tmp_path, overwrite, resume=False):
        pass
    assert contents(tmp_path) == {"mine.txt": "mine"}


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "out").write_text("")
    for place in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(ConfigError), claimed(place, False, False):
            pass
    assert contents(tmp_path) == {"out": ""}


def test_two_runs_do_not_share_a_folder(tmp_path):
    with claimed(tmp_path / "out", False, False):
        with pytest.raises(ConfigError) as refusal, claimed(tmp_path / "out", False, False):
            pass
        assert f"another run writes into it, process {os.getpid()} on " in str(refusal.value)
    with claimed(tmp_path / "out", False, False):
        pass


HOLD = "import sys, time; from pathlib import Path; from glmft.training.run_lock import LOCK, locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('has it', flush=True); time.sleep(600)"


def test_a_dead_owner_does_not_keep_the_folder(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "has it\n"
    with pytest.raises(ConfigError, match=f"process {owner.pid} on"), locked(tmp_path):
        pass
    owner.kill()
    owner.wait()
    with locked(tmp_path):
        assert f"pid={os.getpid()}" in (tmp_path / LOCK).read_text()
    assert not list(tmp_path.iterdir())


FOREIGN = "filelock/2\npid=12\nhost=elsewhere\nmode=lease\ntoken={}\nduration=1.0\nstart=7\n".format("4d" * 16)


def test_an_owner_on_another_host_is_dead_once_it_gives_no_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "LEASE", 1.0)
    monkeypatch.setattr(run_lock, "BEAT", 0.3)
    (tmp_path / LOCK).write_text(FOREIGN)
    began = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began > 0.9


def test_an_owner_on_another_host_that_lives_keeps_the_folder(tmp_path, monkeypatch):
    import threading

    monkeypatch.setattr(run_lock, "LEASE", 1.0)
    monkeypatch.setattr(run_lock, "BEAT", 0.3)
    (tmp_path / LOCK).write_text(FOREIGN)
    ended = threading.Event()

    def beat():
        while not ended.wait(0.1):
            os.utime(tmp_path / LOCK)

    owner = threading.Thread(target=beat)
    owner.start()
    try:
        with pytest.raises(ConfigError, match="process 12 on elsewhere"), locked(tmp_path):
            pass
    finally:
        ended.set()
        owner.join()
    assert (tmp_path / LOCK).read_text() == FOREIGN


def test_a_lock_that_a_kill_left_empty_is_nobodys(tmp_path):
    (tmp_path / LOCK).touch()
    with locked(tmp_path):
        pass


def test_other_ranks_change_nothing(tmp_path):
    keep_checkpoints(tmp_path / "nowhere", World(1, 1, 1, torch.device("cpu"), torch.float32), 1, 4)
