"""Real launches, as users type them."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import BASE, NATIVE, ROOT, SLOW, free_port, losses, train

import glmft
from glmft.cli import main
from glmft.inference.generation import answer

BIN = Path(sys.executable).parent
REFERENCE_FLAGS = [
    *("--per_device_train_batch_size", "1", "--max_len", "1560", "--max_src_len", "1024", "--learning_rate", "1e-4"),
    *("--weight_decay", "0.1", "--num_train_epochs", "2", "--gradient_accumulation_steps", "4"),
    *("--warmup_ratio", "0.1", "--mode", "glm2", "--seed", "1234", "--ds_file", "ds_zero2_no_offload.json"),
    *("--gradient_checkpointing", "--show_loss_step", "1", "--save_model_step", "4"),
]
REFERENCE_TUNERS = {
    "lora": [
        *("--train_type", "lora", "--lora_dim", "16", "--lora_alpha", "64", "--lora_dropout", "0.1"),
        *("--lora_module_name", "query_key_value,dense_h_to_4h,dense_4h_to_h,dense"),
    ],
    "freeze": ["--train_type", "freeze", "--freeze_module_name", "layers.3.,layers.2."],
    "ptuning": ["--train_type", "ptuning", "--pre_seq_len", "16", "--prefix_projection", "True"],
    "ptuning-plain": ["--train_type", "ptuning", "--pre_seq_len", "16", "--prefix_projection", "False", "--is_skip"],
    "prompt": ["--train_type", "prompt", "--pre_seq_len", "8", "--prompt_encoder", "mlp"],
    "all": ["--train_type", "all"],
}


def launch(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    keep = {"OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **keep}, capture_output=True, text=True, timeout=180, check=False
    )


@pytest.mark.parametrize("tuner", [t if t == "lora" else pytest.param(t, marks=SLOW) for t in REFERENCE_TUNERS])
def test_the_reference_command_line_runs_verbatim(tuner, uneven, tmp_path):
    out = tmp_path / "out"
    command = ["deepspeed", "--master_port", str(free_port()), "train.py", "--train_path", str(uneven)]
    command += ["--model_name_or_path", str(BASE), *REFERENCE_FLAGS, *REFERENCE_TUNERS[tuner], "--output_dir", str(out)]
    done = launch(command, CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(losses(out)) == 6  # ten records in steps of four, twice: the last step of an epoch is short
    assert (out / "checkpoint-4" / "manifest.json").is_file()
    model, tokenizer = glmft.load(out)
    assert model(**tokenizer("云川", return_tensors="pt")).logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["glm", "glm3", "glm4", *NATIVE])
def test_every_tuner_trains_the_other_families(family, all_folders, uneven, tmp_path):
    """Folders in the official layout, whose names in config.json tell the family; in one process each."""
    for tuner, flags in REFERENCE_TUNERS.items():
        flags = [flag.replace("layers.3.,", "") for flag in flags]
        argv = ["--train_path", str(uneven), "--model_name_or_path", str(all_folders[family]), *flags]
        mode = "glm4" if family in NATIVE else family
        argv += ["--mode", mode, "--max_steps", "2", "--gradient_checkpointing", "--learning_rate", "1e-4"]
        (tmp_path / tuner).mkdir()
        codes, printed = train([*argv, "--output_dir", str(tmp_path / tuner / "out")], 1, tmp_path / tuner)
        assert codes == [0], printed
        model, tokenizer = glmft.load(tmp_path / tuner / "out", mode=mode)
        assert len(answer(model, tokenizer, ["云川", "岭溪泉"], max_new_tokens=4)) == 2


ONE = ["train.py", "--max_len", "512", "--max_steps", "3", "--show_loss_step", "1", "--lora_dropout", "0"]


@pytest.fixture(scope="module")
def one_rank(uneven, tmp_path_factory) -> list[float]:
    """The losses of one process without a launcher."""
    out = tmp_path_factory.mktemp("one") / "out"
    flags = [*ONE, "--train_path", str(uneven), "--per_device_train_batch_size", "4"]
    done = launch([sys.executable, *flags, "--output_dir", str(out)])
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(out)


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_two_ranks_train_like_one(launcher, one_rank, uneven, tmp_path):
    flags = [*ONE, "--train_path", str(uneven)]
    port = str(free_port())
    two = {
        "deepspeed": ["deepspeed", "--num_gpus", "2", "--master_port", port],
        "torchrun": ["torchrun", "--nproc_per_node", "2", "--master_port", port],
    }[launcher]
    done = launch([*two, *flags, "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "two")])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks on cpu" in done.stdout
    assert losses(tmp_path / "two") == pytest.approx(one_rank, rel=1e-4)


def test_ptuning_without_any_other_flag_runs_on_the_embedded_defaults_and_says_so(tmp_path):
    done = launch(
        [
            sys.executable,
            str(ROOT / "train.py"),
            "--train_type",
            "ptuning",
            "--max_steps",
            "2",
            "--output_dir",
            str(tmp_path / "o"),
        ]
    )
    assert done.returncode == 0, done.stderr
    assert "no --model_name_or_path given: the embedded tiny base" in done.stdout
    assert "no --train_path given: the shipped sample" in done.stdout


def test_under_a_launcher_bad_input_is_one_line_and_a_non_zero_exit(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", \n', encoding="utf-8")
    command = ["torchrun", "--nproc_per_node", "2", "--master_port", str(free_port()), "train.py"]
    done = launch([*command, "--train_path", str(broken), "--output_dir", str(tmp_path / "out")])
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert f"{broken}:2: broken JSON" in lines[0]
    assert "/glmft/" not in done.stderr  # torchrun prints a traceback of its own; ours would name our files
    assert not (tmp_path / "out").exists()


def test_train_predict_merge_predict(uneven, tmp_path):
    """The three commands one after the other; the merged model answers as the adapter does."""
    out = tmp_path / "out"
    flags = ["--train_path", str(uneven), "--max_steps", "4", "--train_type", "lora", "--learning_rate", "1e-2"]
    assert launch([sys.executable, "train.py", *flags, "--output_dir", str(out)]).returncode == 0
    done = launch(
        [sys.executable, "merge_lora.py", "--ori_model_dir", str(BASE), "--model_dir", str(out), "--mode", "glm2"]
    )
    assert done.returncode == 0, done.stderr
    answers = []
    for model in (out, out / "merged"):
        command = [sys.executable, "predict.py", "--model_name_or_path", str(model), "--test_path", str(uneven)]
        folder = tmp_path / f"predict-{model.name}"
        done = launch([*command, "--max_new_tokens", "16", "--output_dir", str(folder)])
        assert done.returncode == 0, done.stderr
        answers.append((folder / "generated_predictions.txt").read_text(encoding="utf-8"))
    assert answers[0] == answers[1]
    assert len(answers[0].splitlines()) == 10


def test_training_in_a_notebooks_process_leaves_no_rank_behind(uneven, tmp_path):
    """Twice in one process, and a launcher started from it is not mistaken for a rank."""
    code = f"""
import os, glmft
for step in (1, 2):
    folder = {str(tmp_path)!r} + f"/{{step}}"
    glmft.train(glmft.TrainConfig(train_path={str(uneven)!r}, max_steps=step, max_len=512, output_dir=folder))
print("left:", {{"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}} & set(os.environ))
"""
    done = launch([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "left: set()"
    assert len(losses(tmp_path / "1")) == len(losses(tmp_path / "2")) == 1


def test_an_official_p_tuning_checkpoint_predicts_and_trains_on(uneven, tmp_path):
    common = ["--train_path", str(uneven), "--max_steps", "3", "--train_type", "ptuning", "--learning_rate", "1e-1"]
    shape = ["--pre_seq_len", "4", "--prefix_projection", "False"]
    codes, printed = train([*common, *shape, "--output_dir", str(tmp_path / "first")], 1, tmp_path)
    assert codes == [0], printed
    checkpoint = tmp_path / "checkpoint-3000"
    checkpoint.mkdir()
    shutil.copy(tmp_path / "first" / "pytorch_model.bin", checkpoint)
    answers = []
    for i, model in enumerate(
        (["--model_name_or_path", str(tmp_path / "first")], ["--ptuning_checkpoint", str(checkpoint)])
    ):
        folder = tmp_path / f"answers-{i}"
        flags = ["--test_path", str(uneven), "--max_new_tokens", "8", "--output_dir", str(folder)]
        assert main([*model, *flags], command="predict") == 0
        answers.append((folder / "generated_predictions.txt").read_text(encoding="utf-8"))
    assert answers[0] == answers[1]
    on = ["--ptuning_checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "on")]
    codes, printed = train([*common, *on], 1, tmp_path)
    assert codes == [0], printed
    described = json.loads((tmp_path / "on" / "glmft_adapter.json").read_text(encoding="utf-8"))
    assert (described["pre_seq_len"], described["prefix_projection"]) == (4, False)
    torn = [*common, "--ptuning_checkpoint", str(uneven), "--output_dir", str(tmp_path / "torn")]
    codes, printed = train(torn, 1, tmp_path)
    assert codes == [2]
    assert "is torn or no weight file" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("tuner", ["lora", "ptuning", "prompt"])
def test_what_trains_can_be_held_in_bf16_and_is_listed(tuner, uneven, tmp_path):
    flags = ["--train_path", str(uneven), "--max_steps", "3", "--dtype", "bf16", "--trainable_dtype", "bf16"]
    flags += ["--gradient_checkpointing", "--use_reentrant", "--show_loss_step", "1", *REFERENCE_TUNERS[tuner]]
    codes, printed = train([*flags, "--output_dir", str(tmp_path / "out")], 2, tmp_path)
    assert codes == [0, 0], printed
    assert "what trains:" in printed
    assert re.search(r"  \S+: \d+ x \[.*\] bfloat16", printed)
    assert re.search(r"trainable parameters: [\d,]+ of [\d,]+ \(\d+\.\d{4}%\), [\d,]+ bytes to save", printed)
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "out"))
