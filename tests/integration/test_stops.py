"""Ends that nobody wishes for: signals, a full disk, numbers that are none, a rank that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import BASE, ROOT, SLOW, STAGED, start, train, wait_for
from safetensors.torch import load_file

from glmft.tokenizers.loading import load_tokenizer

STEPS = ["--max_len", "512", "--per_device_train_batch_size", "2", "--max_steps", "40", "--show_loss_step", "1"]
LORA = ["--train_type", "lora", "--lora_dropout", "0.1", "--save_model_step", "1000"]


def finished(ranks, logs) -> tuple[list[int], str]:
    for rank in ranks:
        rank.join(240)
    return [rank.exitcode for rank in ranks], "".join(Path(log).read_text(encoding="utf-8") for log in logs)


@pytest.mark.parametrize(
    ("number", "how"),
    [
        (signal.SIGTERM, []),
        *(pytest.param(number, [], marks=SLOW) for number in (signal.SIGINT, signal.SIGUSR1)),
        pytest.param(signal.SIGTERM, STAGED, marks=SLOW),
    ],
)
def test_a_signal_to_one_rank_saves_and_ends_all_and_resume_gives_the_same_bits(number, how, uneven, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    common = ["--train_path", str(uneven), *STEPS, *LORA, *how]
    assert train([*common, "--output_dir", str(whole)], 2, tmp_path)[0] == [0, 0]
    common += ["--output_dir", str(out)]
    ranks, logs = start(common, 2, tmp_path)
    wait_for(out / "metrics.jsonl", '"step": 3')
    os.kill(ranks[1].pid, number)
    os.kill(ranks[1].pid, number)  # launchers send some twice
    codes, printed = finished(ranks, logs)
    assert codes == [75, 75], printed
    [place] = out.glob("checkpoint-*")
    step = int(place.name.split("-")[1])
    assert 3 <= step < 40
    told = [line for line in printed.splitlines() if line.startswith(("stopped: ", "error: "))]
    assert len(told) == 1
    assert f"after step {step}: checkpoint-{step} is saved; go on with --resume yes" in told[0]
    codes, printed = train([*common, "--resume", "yes"], 2, tmp_path)
    assert codes == [0, 0], printed
    want, got = (load_file(folder / "adapter_model.safetensors") for folder in (whole, out))
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


def test_ranks_notice_that_their_launcher_is_gone(uneven, tmp_path):
    """A launcher that gets SIGKILL can tell its ranks nothing."""
    out, log = tmp_path / "out", tmp_path / "log"
    bin_ = Path(sys.executable).parent
    flags = ["--train_path", str(uneven), *STEPS, *LORA, "--max_steps", "100000", "--output_dir", str(out)]
    command = [str(bin_ / "deepspeed"), "--num_gpus", "2", "--master_port", "29631", str(ROOT / "train.py"), *flags]
    path = os.pathsep.join([str(bin_), os.environ["PATH"]])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        launcher = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=ROOT)
    wait_for(out / "metrics.jsonl", '"step": 3')
    launcher.kill()
    launcher.wait()
    wait_for(log, "stopped: by the end of the launcher")
    assert len(list(out.glob("checkpoint-*"))) == 1


def stages(*ds_files: str) -> list:
    """Flags for each of the DeepSpeed files and for a pipeline with each of the first two, for slow tests."""
    plain = [["--ds_file", f"ds_zero{name}.json"] for name in ds_files]
    staged = [[*STAGED, "--ds_file", f"ds_zero{name}.json"] for name in ("0", "1")]
    return [pytest.param(flags, marks=SLOW, id="-".join(flags[1::2])) for flags in plain + staged]


def quick(ds_file: str) -> Any:
    """The same, of one file, for fast tests."""
    return pytest.param(["--ds_file", f"ds_zero{ds_file}.json"], id=f"ds_zero{ds_file}.json")


@pytest.mark.parametrize("how", [quick("2_no_offload"), *stages("0")])
def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(how, uneven, tmp_path):
    out = tmp_path / "out"
    common = ["--train_path", str(uneven), *STEPS, "--train_type", "full", "--output_dir", str(out)]
    common += ["--max_steps", "4", *how, "--save_model_step", "2"]
    codes, printed = train([*common, "--max_steps", "2"], 2, tmp_path)
    assert codes == [0, 0], printed
    codes, printed = train([*common, "--resume", "yes"], 2, tmp_path, file_bytes=1_000_000)
    assert codes == [2, 2], printed
    told = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "checkpoint-4: could not be saved" in told[0]
    assert "Traceback" not in printed
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not list(out.glob(".writing-checkpoint*"))
    codes, printed = train([*common, "--resume", "yes"], 2, tmp_path)
    assert codes == [0, 0], printed


@pytest.mark.parametrize("how", [quick("0"), quick("2_no_offload"), *stages("1", "3_no_offload")])
def test_a_loss_that_is_no_number_stops_before_the_weights_change_and_names_the_records(how, tmp_path):
    data = tmp_path / "data.json"
    rows = [{"instruction": "请复述", "input": "云川", "output": "云川"} for _ in range(10)]
    rows[3]["input"] = "溪"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "out"
    flags = ["--train_path", str(data), "--model_name_or_path", str(BASE), *STEPS, "--max_len", "300"]
    flags += ["--per_device_train_batch_size", "1", *how, "--longest_batch_first", "False"]
    token = load_tokenizer(BASE).encode_text("溪")[-1]
    flags += ["--save_model_step", "1", "--output_dir", str(out)]
    codes, printed = train(flags, 2, tmp_path, bad_loss_with=token)
    assert codes == [3, 3], printed
    told = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "the loss is nan at step" in told[0]
    assert f"{data}:4" in told[0]
    report = json.loads((out / "bad_batch.json").read_text(encoding="utf-8"))
    assert f"{data}:4" in [record["place"] for record in report["records"]]
    assert [part["rows"] for part in report["micro_batches"] if part["loss"] == "nan"] == [[3]]
    assert "溪" in next(record["text"] for record in report["records"] if record["row"] == 3)
    for saved in out.glob("checkpoint-*"):
        assert all(t.isfinite().all() for t in load_file(saved / "adapter_model.safetensors").values())
    assert len(list(out.glob("checkpoint-*"))) == report["step"] - 1


@pytest.mark.parametrize("how", [quick("0"), quick("3_no_offload"), *stages("1", "2_no_offload")])
def test_a_gradient_that_is_no_number_stops_too(how, uneven, tmp_path):
    out = tmp_path / "out"
    flags = ["--train_path", str(uneven), *STEPS, *LORA, *how, "--save_model_step", "1"]
    codes, printed = train([*flags, "--output_dir", str(out)], 2, tmp_path, bad_gradient_at=3)
    assert codes == [3, 3], printed
    told = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "the gradient is not finite at step 3" in told[0]
    assert [p.name for p in sorted(out.glob("checkpoint-*"))] == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("how", [[], pytest.param(STAGED, marks=SLOW)])
def test_a_rank_that_dies_takes_the_others_down_with_one_line(how, uneven, tmp_path):
    flags = ["--train_path", str(uneven), *STEPS, *LORA, *how, "--output_dir", str(tmp_path / "out")]
    ranks, logs = start(flags, 2, tmp_path)
    wait_for(tmp_path / "out" / "metrics.jsonl", '"step": 3')
    began = time.monotonic()
    ranks[1].kill()
    codes, printed = finished(ranks, logs)
    assert time.monotonic() - began < 60
    assert codes == [5, -signal.SIGKILL], printed
    assert "Traceback" not in printed
    assert len([line for line in printed.splitlines() if line.startswith("error: another rank has ended")]) == 1


@pytest.mark.parametrize("how", [[], pytest.param(STAGED, marks=SLOW)])
def test_an_error_of_one_rank_alone_is_told_once(how, uneven, tmp_path):
    flags = ["--train_path", str(uneven), *STEPS, *LORA, *how, "--output_dir", str(tmp_path / "out")]
    codes, printed = train(flags, 2, tmp_path, fails=(1, "out of memory, they say"))
    assert codes == [5, 4], printed
    assert "Traceback" not in printed
    told = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len([line for line in told if "rank 1: out of memory (out of memory, they say)" in line]) == 1
    assert len(told) == 2
    assert "(1) --gradient_checkpointing saves about" in printed
