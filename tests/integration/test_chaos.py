"""SIGKILL at seeded random moments, saves included: no run is ever lost, and it ends with the same bits."""

import random
import re
import time
from pathlib import Path

import pytest
import torch
from ranks import STAGED, start, train
from safetensors.torch import load_file

KILLS, SEED = 30, 11


def kill_somewhen(ranks: list, logs: list[str], folder: Path, draw: random.Random) -> str:
    """Kill one rank or all of them: while starting, while training, or while a checkpoint is written or deleted."""
    moment = draw.choice(["starting", "training", "training", "saving", "saving"])
    end = time.monotonic() + 60
    if moment == "starting":
        time.sleep(draw.uniform(0, 1.5))
    else:
        while "the longest micro-batch fits" not in (printed := Path(logs[0]).read_text(encoding="utf-8")):
            assert time.monotonic() < end, printed
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.8))
    while moment == "saving" and ranks[0].is_alive() and time.monotonic() < end:
        if any(p.name.startswith((".writing-", ".deleting-")) for p in folder.iterdir()):
            time.sleep(draw.uniform(0, 0.02))
            break
    assert all(rank.is_alive() for rank in ranks), "the run ended before it was killed; give it more steps"
    harmed = ranks if draw.random() < 0.5 else [draw.choice(ranks)]
    for rank in harmed:
        rank.kill()
    for rank in ranks:
        rank.join(60)
    assert not any(rank.is_alive() for rank in ranks)
    return moment


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train_type", "how"),
    [
        ("lora", ["--ds_file", "ds_zero2_no_offload.json"]),
        ("full", ["--ds_file", "ds_zero3_no_offload.json"]),
        ("lora", STAGED),
        ("full", STAGED),
    ],
)
def test_thirty_kills_cost_nothing(train_type, how, uneven, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    common = ["--train_path", str(uneven), "--max_len", "512", "--per_device_train_batch_size", "1"]
    common += [
        "--gradient_accumulation_steps",
        "2",
        "--join_micro_batches",
        "False",
        "--max_steps",
        "400",
        "--save_model_step",
        "3",
    ]
    common += ["--save_total_limit", "2", "--show_loss_step", "5", "--lora_dropout", "0.1", "--train_type", train_type]
    common += how
    codes, printed = train([*common, "--output_dir", str(whole)], 2, tmp_path)
    assert codes == [0, 0], printed
    draw, moments = random.Random(SEED), []
    common += ["--output_dir", str(out), "--resume", "yes"]
    for _ in range(KILLS):
        ranks, logs = start(common, 2, tmp_path)
        moments.append(kill_somewhen(ranks, logs, out, draw))
        printed = "".join(Path(log).read_text(encoding="utf-8") for log in logs)
        assert "Traceback" not in printed
        lost = re.compile(r"error: (rank 1: )?another rank has ended")
        assert all(lost.match(line) for line in printed.splitlines() if line.startswith("error")), printed
    assert {"starting", "training", "saving"} == set(moments)
    codes, printed = train(common, 2, tmp_path)
    assert codes == [0, 0], printed
    file = "model.safetensors" if train_type == "full" else "adapter_model.safetensors"
    want, got = load_file(whole / file), load_file(out / file)
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    assert (whole / "metrics.jsonl").read_text().count("\n") == (out / "metrics.jsonl").read_text().count("\n")
    assert len(list(out.glob("checkpoint-*"))) == 2
    assert not list(out.glob(".*"))
