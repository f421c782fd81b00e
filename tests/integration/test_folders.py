"""One folder, many runs: what was there is never lost, whichever run is refused, replaced, left or killed."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from ranks import LORA, losses, metrics, start, train, wait_for
from safetensors.torch import load_file

STEPS = ["--max_len", "512", "--per_device_train_batch_size", "2", "--show_loss_step", "1", *LORA]
SHORT = [*STEPS, "--max_steps", "6", "--save_model_step", "2"]


def flags(uneven: Path, out: Path, *more: str) -> list[str]:
    return ["--train_path", str(uneven), "--output_dir", str(out), *SHORT, *more]


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but what is on its way in or out."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.relative_to(folder).parts[0][0] != "."}


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(b[name], tensor) for name, tensor in a.items())


@pytest.fixture(scope="module")
def old(uneven, tmp_path_factory) -> Path:
    """A finished run of six steps; not to be changed."""
    folder = tmp_path_factory.mktemp("old")
    codes, printed = train(flags(uneven, folder / "out"), 1, folder)
    assert codes == [0], printed
    return folder / "out"


@pytest.fixture
def out(old, tmp_path) -> Path:
    """A copy of it."""
    import shutil

    shutil.copytree(old, tmp_path / "out", symlinks=True)
    return tmp_path / "out"


def test_going_back_starts_a_line_that_goes_on_with_the_same_bits(old, uneven, out, tmp_path):
    """Back to 2 with another rate; killed before, stopped and killed after its first checkpoint."""
    again = flags(uneven, out, "--learning_rate", "5e-3", "--save_total_limit", "2")
    codes, printed = train([*again, "--resume", "2"], 1, tmp_path, die_after=2)
    assert codes == [-signal.SIGKILL], printed
    assert "going back to step 2: checkpoint-4, checkpoint-6 of the line before are kept in" in printed
    assert (
        "going on from checkpoint-2 of 6 steps\nchanged since checkpoint-2: learning_rate 0.001 -> 0.005, " in printed
    )
    assert steps(out) == [2]
    assert steps(out / "set-aside-1") == [4, 6]
    assert not (out / "train_results.json").exists()
    codes, printed = train([*again, "--resume", "yes"], 1, tmp_path, die_after=4)
    assert codes == [-signal.SIGKILL], printed
    assert "step 3/6" in printed
    assert steps(out) == [2, 4]
    codes, printed = train([*again, "--resume", "yes"], 1, tmp_path)
    assert codes == [0], printed
    assert "step 5/6" in printed
    assert "step 4/6" not in printed
    assert steps(out) == [4, 6]
    for step in (4, 6):
        assert files(out / "set-aside-1" / f"checkpoint-{step}") == files(old / f"checkpoint-{step}")
    assert (out / "set-aside-1" / "metrics.jsonl").read_bytes() == (old / "metrics.jsonl").read_bytes()
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4, 5, 6]
    assert losses(out)[:2] == losses(old)[:2]
    straight = tmp_path / "straight"
    straight.mkdir()
    for name in ("checkpoint-2", "train_config.json"):
        os.symlink(old / name, straight / name)
    codes, printed = train([*flags(uneven, straight, "--learning_rate", "5e-3"), "--resume", "2"], 1, tmp_path)
    assert codes == [0], printed
    assert same_weights(straight, out)
    assert not same_weights(old, out)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--resume", "5"], "--resume 5"),
        (["--resume", "4", "--seed", "5"], "seed was 1234, now it is 5"),
        (["--resume", "yes", "--lora_dim", "8"], "another shape in the checkpoint"),
        (["--overwrite_output_dir", "--lora_module_name", "no_such"], "no_such"),
        (["--overwrite_output_dir", "--train_type", "freeze", "--freeze_module_name", "nothing."], "nothing."),
        ([], "holds a run already"),
    ],
)
def test_a_run_that_is_refused_changes_nothing(more, part, uneven, out, tmp_path):
    before = files(out)
    codes, printed = train(flags(uneven, out, *more), 1, tmp_path)
    assert codes == [2], printed
    assert "Traceback" not in printed
    [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert part in line
    assert ("data:" in printed) == ("--lora_dim" in more)  # all else is seen before
    assert files(out) == before
    assert not list(out.glob(".*"))


def test_a_finished_run_says_so_and_changes_nothing(uneven, out, tmp_path):
    before = files(out)
    codes, printed = train(flags(uneven, out, "--resume", "yes"), 1, tmp_path)
    assert codes == [0], printed
    assert f"the run in {out} is finished: 6 of 6 steps" in printed
    assert "what trains" not in printed
    assert files(out) == before


def test_a_run_that_replaces_another_and_dies_brings_it_back(uneven, out, tmp_path):
    before = files(out)
    anew = flags(uneven, out, "--overwrite_output_dir", "--seed", "5")
    codes, printed = train(anew, 1, tmp_path, fails=(0, "out of memory, they say"))
    assert codes == [4], printed
    assert files(out) == before
    codes, printed = train(anew, 1, tmp_path, die_after=2)
    assert codes == [-signal.SIGKILL], printed
    assert [line["step"] for line in metrics(out)] == [1]
    codes, printed = train(flags(uneven, out), 1, tmp_path)
    assert codes == [2], printed
    assert "the run before is back" in printed
    assert files(out) == before
    codes, printed = train(anew, 1, tmp_path, die_after=4)
    assert codes == [-signal.SIGKILL], printed
    assert steps(out) == [2]
    codes, printed = train(flags(uneven, out, "--resume", "yes", "--seed", "5"), 1, tmp_path)
    assert codes == [0], printed
    assert "step 3/6" in printed
    assert steps(out) == [2, 4, 6]
    assert not list(out.glob(".*"))


def test_of_two_runs_that_start_in_one_folder_one_goes_on(uneven, tmp_path):
    """They start at the same time; a third comes later, with --resume."""
    logs = [tmp_path / name for name in ("one", "two", "three")]
    for log in logs:
        log.mkdir()
    argv = [*flags(uneven, tmp_path / "out"), "--max_steps", "100000", "--save_model_step", "1000"]
    both = [start(argv, 1, log)[0][0] for log in logs[:2]]
    wait_for(tmp_path / "out" / "metrics.jsonl", '"step": 3')
    deadline = time.monotonic() + 60
    while all(process.is_alive() for process in both):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ended, running = sorted(both, key=lambda process: process.is_alive())
    assert ended.exitcode == 2
    refused = (logs[both.index(ended)] / "rank0.log").read_text(encoding="utf-8")
    assert f"another run writes into it, process {running.pid} on " in refused
    codes, printed = train([*argv, "--resume", "yes"], 1, logs[2])
    assert codes == [2], printed
    assert f"another run writes into it, process {running.pid} on " in printed
    running.terminate()
    running.join(60)
    assert running.exitcode == 75


@pytest.mark.slow
def test_kills_at_random_moments_of_runs_that_go_back_and_replace_lose_nothing(uneven, out, tmp_path):
    """Whatever was killed, the folder has a run whose newest checkpoint is whole, of the old line or of the new."""
    draw, seen = random.Random(3), set()
    for round_ in range(40):
        way = draw.choice([["--resume", str(min(steps(out)))], ["--overwrite_output_dir"], ["--resume", "yes"]])
        argv = [*flags(uneven, out, *way), "--max_steps", "400", "--save_model_step", str(draw.choice([1, 3]))]
        ranks, logs = start(argv, 1, tmp_path)
        moment = draw.choice(["any", "begin"])
        end = time.monotonic() + 60
        while moment == "begin" and "longest micro-batch fits" not in Path(logs[0]).read_text(encoding="utf-8"):
            assert time.monotonic() < end
            assert ranks[0].is_alive(), Path(logs[0]).read_text(encoding="utf-8")
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.3 if moment == "begin" else 4))
        ranks[0].kill()
        ranks[0].join()
        printed = Path(logs[0]).read_text(encoding="utf-8")
        assert "Traceback" not in printed
        seen.add((way[0], moment, "going back" in printed, "saved " in printed))
        codes, printed = train([*flags(uneven, out, "--resume", "yes", "--max_steps", "1")], 1, tmp_path)
        assert codes == [0], (round_, printed)
        assert "starting from the beginning" not in printed, (round_, way, printed)
        assert not list(out.glob(".*"))
    assert len(seen) > 3, seen
