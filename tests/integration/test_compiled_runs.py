"""A run with --torch_compile learns what one without learns, and goes on to the bit."""

import os
import signal
import subprocess
import sys

import pytest
from ranks import ROOT, losses, train

RUN = ["--per_device_train_batch_size", "2", "--max_steps", "6", "--show_loss_step", "1", "--save_model_step", "3"]
RUN += ["--max_len", "512", "--lora_module_name", "all-linear", "--lora_dim", "4"]
COMPILED = "--torch_compile"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "ranks", "flags"),
    [("glm2", 2, ["--gradient_checkpointing"]), ("glm", 1, ["--packing"]), ("native-glm", 1, ["--dtype", "bf16"])],
)
def test_losses_are_those_without_it_and_a_killed_run_goes_on_to_the_bit(
    family, ranks, flags, all_folders, uneven, tmp_path
):
    common = ["--train_path", str(uneven), "--model_name_or_path", str(all_folders[family]), *RUN, *flags]
    plain, compiled, resumed = (tmp_path / name for name in ("plain", "compiled", "resumed"))
    still = ["--lora_dropout", "0"]
    for folder, more in ((plain, still), (compiled, [*still, COMPILED])):
        codes, printed = train([*common, *more, "--output_dir", str(folder)], ranks, tmp_path)
        assert codes == [0] * ranks, printed
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-2 if "bf16" in flags else 1e-4)
    whole, common = tmp_path / "whole", [*common, COMPILED, "--lora_dropout", "0.2", "--output_dir"]
    codes, printed = train([*common, str(whole)], ranks, tmp_path)
    assert codes == [0] * ranks, printed
    codes, printed = train([*common, str(resumed)], ranks, tmp_path, die_after=1 + 4)
    assert codes == [-signal.SIGKILL] * ranks, printed
    codes, printed = train([*common, str(resumed), "--resume", "yes"], ranks, tmp_path)
    assert codes == [0] * ranks, printed
    assert losses(resumed) == losses(whole)


@pytest.mark.slow
def test_without_a_compiler_and_with_zero_3_it_is_one_line(official_folders, uneven, tmp_path):
    command = [sys.executable, "-m", "glmft", "train", "--train_path", str(uneven), COMPILED, "--model_name_or_path"]
    command += [str(official_folders["glm2"]), "--max_steps", "1", "--output_dir", str(tmp_path / "out")]
    home = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **home, "CXX": "/nowhere/g++", "PATH": "/nowhere"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    lines = [line for line in ended.stderr.splitlines() + ended.stdout.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {COMPILED}: nothing can be compiled here (")
    assert "Traceback" not in ended.stdout + ended.stderr
    codes, printed = train([*command[4:], "--ds_file", "ds_zero3_no_offload.json"], 1, tmp_path)
    assert codes == [2], printed
    assert f"error: {COMPILED}: does not go with ZeRO-3" in printed
