"""Real launches of what follows training: answers by several ranks, after a kill, and a small comparison."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from ranks import BASE, ROOT

from examples.quickstart.run import free_port

pytestmark = pytest.mark.slow
BIN = os.path.dirname(sys.executable)
TEST = ROOT / "examples" / "quickstart" / "test.json"
FLAGS = ["--model_name_or_path", str(BASE), "--test_path", str(TEST), "--max_samples", "60", "--max_new_tokens", "12"]
DRAWN = ["--do_sample", "--temperature", "1.5", "--top_p", "1"]


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", BIN + os.pathsep + os.environ["PATH"])


def launch(words, cwd) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answers(folder) -> bytes:
    return (folder / "generated_predictions.txt").read_bytes()


@pytest.mark.parametrize("decoding", [[], ["--num_beams", "2"], DRAWN], ids=["greedy", "beams", "drawn"])
def test_ranks_share_the_records_and_write_what_one_process_writes(decoding, environment, tmp_path):
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    launch([sys.executable, "-m", "glmft", "predict", *FLAGS, *decoding, "--output_dir", str(one)], tmp_path)
    script, small = str(ROOT / "predict.py"), ["--per_device_eval_batch_size", "3"]
    torchrun = ["torchrun", "--nproc_per_node", "2", "--master_port", str(free_port()), script]
    printed = launch([*torchrun, *FLAGS, *decoding, *small, "--output_dir", str(two)], tmp_path)
    assert printed.count("60 answers in") == 1
    assert answers(one) == answers(two)
    assert (one / "predict_results.json").read_bytes() == (two / "predict_results.json").read_bytes()
    if not decoding:
        three.mkdir()
        (three / "generated_predictions.txt").write_bytes(b"".join(answers(one).splitlines(keepends=True)[:7]))
        deepspeed = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), script]
        launch([*deepspeed, *FLAGS, *small, "--resume", "--output_dir", str(three)], tmp_path)
        assert answers(one) == answers(three)


def test_a_killed_command_goes_on_where_it_was(environment, tmp_path):
    words = [sys.executable, "-m", "glmft", "predict", *FLAGS, "--per_device_eval_batch_size", "1"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    launch([*words, "--output_dir", str(whole)], tmp_path)
    process = subprocess.Popen([*words, "--output_dir", str(out)], cwd=tmp_path)
    file = out / "generated_predictions.txt"
    while process.poll() is None and not (file.exists() and file.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(answers(out).splitlines())
    assert 0 < kept < 60
    printed = launch([*words, "--output_dir", str(out)], tmp_path)
    assert f"going on behind {kept} of 60 answers" in printed
    assert answers(out) == answers(whole)


def test_a_comparison_trains_scores_and_is_not_done_twice(environment, tmp_path):
    general = tmp_path / "general.json"
    general.write_text("".join(TEST.read_text(encoding="utf-8").splitlines(keepends=True)[-6:]), encoding="utf-8")
    words = [sys.executable, "-m", "glmft", "compare", "--tuners", "lora,prompt,freeze", "--num_seeds", "2"]
    words += ["--max_steps", "2", "--max_samples", "6", "--max_new_tokens", "8", "--general_path", str(general)]
    words += ["--freeze_module_name", "no.such.layer", "--output_dir", "out"]
    printed = launch(words, tmp_path)
    assert "| freeze | failed: seed 1234: --freeze_module_name no.such.layer" in printed
    with (tmp_path / "out" / "compare.csv").open(encoding="utf-8") as file:
        rows = {(row["tuner"], row["kind"]): row for row in csv.DictReader(file)}
    lora = rows["lora", "measured here"]
    results = [
        json.loads((tmp_path / "out" / f"lora-seed-{seed}" / "train_results.json").read_text()) for seed in (1234, 1235)
    ]
    assert float(lora["final_loss"]) == pytest.approx(sum(r["last_loss"] for r in results) / 2)
    assert float(lora["trainable_parameters"]) == results[0]["trainable_parameters"] > 0
    scored = [
        json.loads((tmp_path / "out" / f"lora-seed-{seed}" / "predict_general" / "predict_results.json").read_text())
        for seed in (1234, 1235)
    ]
    base = json.loads((tmp_path / "out" / "base" / "predict_general" / "predict_results.json").read_text())
    drops = [base["predict_rouge-l"] - score["predict_rouge-l"] for score in scored]
    assert float(lora["drop/rouge-l"]) == pytest.approx(sum(drops) / 2)
    assert rows["freeze", "measured here"]["failed"] == "2"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/train_results.json")}
    assert len(before) == 4
    launch(words, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/train_results.json")} == before
