"""The plan of a very run: `glmft train --plan`."""

import json

from ranks import LORA, run, train


def test_a_run_tells_its_plan_and_ends_before_anything_is_written(uneven, tmp_path):
    out = tmp_path / "out"
    flags = ["--train_path", str(uneven), *LORA, "--output_dir", str(out), "--plan", "--gpu", "t4"]
    codes, printed = train(flags, 2, tmp_path)
    assert codes == [0, 0], printed
    assert printed.count("fits: t4 has 14.0 GiB") == 1
    assert "ZeRO-2" in printed
    assert "of each of 2 GPUs" in printed
    assert not out.exists()


def test_what_a_plan_cannot_make_sense_of_is_one_line(uneven, tmp_path):
    flags = ["--train_path", str(uneven), *LORA, "--output_dir", str(tmp_path / "out"), "--plan", "--gpu", "gpu"]
    code, printed = run("train", flags, tmp_path)
    assert code == 2
    assert "error: --gpu gpu: is neither a number of GiB nor one of" in printed


def test_the_plan_has_the_lengths_of_the_run(uneven, tmp_path):
    flags = ["--train_path", str(uneven), *LORA, "--output_dir", str(tmp_path / "out")]
    _, planned = run("train", [*flags, "--plan"], tmp_path)
    [told] = [line for line in planned.splitlines() if line.startswith("micro-batch")]
    code, printed = run("train", [*flags, "--max_steps", "1"], tmp_path)
    assert code == 0, printed
    [held] = [line for line in printed.splitlines() if "largest micro-batch holds" in line]
    assert told.split()[1] == held.rpartition("holds ")[2].split()[0]
    assert json.loads((tmp_path / "out" / "train_config.json").read_text())["plan"] is False
