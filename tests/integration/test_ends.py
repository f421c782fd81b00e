"""Ends that come from outside: readers that leave, full logs, terminals that close, ranks that hang or are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import LORA, ROOT, SLOW, start, train, wait_for

STEPS = ["--max_len", "512", "--per_device_train_batch_size", "2", "--show_loss_step", "1", *LORA]
ENDLESS = [*STEPS, "--max_steps", "100000", "--save_model_step", "100000"]


def told(logs: list[str]) -> list[list[str]]:
    """The lines with which each rank says how it ended."""
    lines = [Path(log).read_text(encoding="utf-8").splitlines() for log in logs]
    return [[line for line in of_rank if line.startswith(("error: ", "stopped: "))] for of_rank in lines]


def ended(ranks, seconds: float = 240) -> list[int]:
    for rank in ranks:
        rank.join(seconds)
    return [rank.exitcode for rank in ranks]


STAGES = ["--pipeline_stages", "3"]


@pytest.mark.parametrize(
    ("victim", "how"), [(0, []), *(pytest.param(*case, marks=SLOW) for case in ((1, []), (0, STAGES), (1, STAGES)))]
)
def test_every_survivor_says_that_a_rank_was_killed(victim, how, uneven, tmp_path):
    argv = ["--train_path", str(uneven), *ENDLESS, *how, "--output_dir", str(tmp_path / "out")]
    ranks, logs = start(argv, 3, tmp_path)
    wait_for(tmp_path / "out" / "metrics.jsonl", '"step": 3')
    ranks[victim].kill()
    codes = ended(ranks)
    assert codes == [-signal.SIGKILL if rank == victim else 5 for rank in range(3)]
    for rank, lines in enumerate(told(logs)):
        whose = f"error: {f'rank {rank}: ' if rank else ''}"
        assert lines == [] if rank == victim else [lines[0]]
        assert rank == victim or lines[0].startswith(f"{whose}another rank has ended, so this run cannot go on")
        assert "frame #" not in Path(logs[rank]).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["torchrun", "--nproc_per_node", "2"], ["deepspeed", "--num_gpus", "2"]])
def test_a_launcher_that_ends_the_survivors_does_not_silence_them(launcher, uneven, tmp_path):
    """Rank 0 is killed as soon as the ranks have met, and in the loop."""
    bin_ = Path(sys.executable).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = os.pathsep.join([str(bin_), os.environ["PATH"]])
    for number, moment in enumerate(["2 ranks on cpu", "step 3/"]):
        log, out = tmp_path / f"log{number}", tmp_path / f"out{number}"
        flags = ["--train_path", str(uneven), *ENDLESS, "--output_dir", str(out)]
        command = [str(bin_ / launcher[0]), *launcher[1:], "--master_port", "29651", "train.py", *flags]
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=ROOT)
        wait_for(log, moment)
        os.kill(next(pid for pid in descendants(process.pid) if variables(pid).get("RANK") == "0"), signal.SIGKILL)
        assert process.wait(240) != 0
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if "rank 1: " in line]
        assert len([line for line in lines if line.startswith(("error: ", "stopped: "))]) == 1, log.read_text()


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [number for child in children for number in (int(child), *descendants(int(child)))]


def variables(pid: int) -> dict[str, str]:
    """The environment of a process."""
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.mark.parametrize(
    ("victim", "how"), [(1, []), *(pytest.param(*case, marks=SLOW) for case in ((0, []), (0, STAGES), (2, STAGES)))]
)
def test_a_rank_that_hangs_is_named_by_every_other(victim, how, uneven, tmp_path):
    argv = ["--train_path", str(uneven), *ENDLESS, *how, "--rank_timeout", "3", "--output_dir", str(tmp_path / "out")]
    ranks, logs = start(argv, 3, tmp_path)
    wait_for(tmp_path / "out" / "metrics.jsonl", '"step": 3')
    os.kill(ranks[victim].pid, signal.SIGSTOP)
    others = [rank for rank in range(3) if rank != victim]
    assert ended([ranks[rank] for rank in others]) == [5, 5]
    ranks[victim].kill()
    for rank in others:
        [line] = told(logs)[rank]
        assert f"rank {victim} did not answer for 3 s" in line
        assert "--rank_timeout" in line


@pytest.mark.parametrize("number", [signal.SIGHUP, *(pytest.param(s, marks=SLOW) for s in (signal.SIGINT,))])
def test_a_signal_saves_and_ends_the_run(number, uneven, tmp_path):
    ranks, logs = start(["--train_path", str(uneven), *ENDLESS, "--output_dir", str(tmp_path / "out")], 1, tmp_path)
    wait_for(tmp_path / "out" / "metrics.jsonl", '"step": 3')
    os.kill(ranks[0].pid, number)
    assert ended(ranks) == [75]
    [[line]] = told(logs)
    assert f"by {number.name} after step" in line
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_before_training_is_told_and_leaves_nothing(number, uneven, tmp_path):
    ranks, logs = start(["--train_path", str(uneven), *ENDLESS, "--output_dir", str(tmp_path / "out")], 1, tmp_path)
    wait_for(Path(logs[0]), "1 rank on cpu")
    os.kill(ranks[0].pid, number)
    assert ended(ranks) == [130 if number == signal.SIGINT else 75]
    [[line]] = told(logs)
    assert line == f"stopped: by {number.name} before training began; nothing is saved"
    assert not (tmp_path / "out").exists()


def test_a_signal_ends_a_process_that_waits_for_ranks_that_never_come(tmp_path):
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": "29641", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), "--output_dir", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    import socket

    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 29641)) == 0:
                break
        time.sleep(0.1)
    time.sleep(0.5)
    process.terminate()
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "stopped: by SIGTERM before training began; nothing is saved" in printed


COMMON = '"{python}" train.py --train_path {data} --max_len 512 --per_device_train_batch_size 2 --show_loss_step 1 '
COMMON += "--max_steps 12 --save_model_step 6 --lora_dim 4 --output_dir {out}"
READERS = {
    "head": COMMON + " 2>&1 | head -3; exit ${{PIPESTATUS[0]}}",
    "full log": COMMON + " >/dev/full 2>&1",
    "no terminal": COMMON + " <&- >&- 2>&-",
}


@pytest.mark.parametrize("how", ["head", *(pytest.param(how, marks=SLOW) for how in ("full log", "no terminal"))])
def test_a_run_goes_on_whatever_becomes_of_its_log(how, uneven, tmp_path):
    line = READERS[how].format(python=sys.executable, data=uneven, out=tmp_path / "out")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result
    assert (tmp_path / "out" / "train_results.json").is_file()
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.slow
def test_nohup_is_obeyed(uneven, tmp_path):
    """A run that was told to ignore SIGHUP goes on."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    flags = ["--train_path", str(uneven), *ENDLESS, "--output_dir", str(tmp_path / "out")]
    process = subprocess.Popen(
        ["nohup", sys.executable, "train.py", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=ROOT,
    )
    wait_for(tmp_path / "out" / "metrics.jsonl", '"step": 3')
    process.send_signal(signal.SIGHUP)
    size = (tmp_path / "out" / "metrics.jsonl").stat().st_size
    time.sleep(1)
    assert process.poll() is None
    assert (tmp_path / "out" / "metrics.jsonl").stat().st_size > size
    process.terminate()
    assert process.wait(240) == 75


def test_a_damaged_cache_is_told_of_and_trained_from_anew(uneven, tmp_path):
    flags = ["--train_path", str(uneven), *STEPS, "--max_steps", "1", "--cache_dir", str(tmp_path / "cache")]
    assert train([*flags, "--output_dir", str(tmp_path / "one")], 2, tmp_path)[0] == [0, 0]
    [rows] = (tmp_path / "cache").glob("*/rows.arrow")
    data = rows.read_bytes()
    rows.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    codes, printed = train([*flags, "--output_dir", str(tmp_path / "two")], 2, tmp_path)
    assert codes == [0, 0], printed
    assert printed.count("was damaged (rows.arrow has changed): made again") == 1
