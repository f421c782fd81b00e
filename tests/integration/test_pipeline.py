"""Runs in a pipeline of stages: their gradients, what they print and leave, and what they refuse."""

import json
import os
import subprocess
import sys

import pytest
from ranks import LORA, NATIVE, ROOT, SLOW, STAGED, losses, metrics, train
from safetensors.torch import load_file
from test_gradients import LORA_CONFIG, SEED, assert_same, by_engine, by_hand

import glmft
from examples.quickstart.run import free_port
from glmft.family import FAMILIES
from glmft.inference.generation import answer

TUNERS = {
    "lora": {"lora_module_name": "all-linear", "lora_dim": 4, "lora_dropout": 0.0},
    "ptuning": {"pre_seq_len": 4, "prefix_dropout": 0.0},
    "ptuning-projected": {"pre_seq_len": 4, "prefix_projection": True, "prefix_dropout": 0.0},
    "prompt": {"pre_seq_len": 4, "prompt_encoder": "mlp"},
    "freeze": {},
    "full": {},
}
STEPS = ["--max_len", "512", "--max_steps", "3", "--show_loss_step", "1", "--seed", str(SEED)]


@pytest.mark.parametrize(
    ("micro", "accumulation", "ranks"),
    [
        (2, 4, 2),
        *(pytest.param(*split, marks=SLOW) for split in ((8, 1, 2), (4, 2, 2), (1, 8, 2), (2, 2, 4), (1, 8, 4))),
    ],
)
def test_every_split_of_a_window_gives_the_gradient_computed_by_hand(micro, accumulation, ranks, uneven, tmp_path):
    """Two stages; on four ranks each of them is twice there, or there are four of one layer."""
    stages = ranks if micro == 1 else 2
    flags = [*LORA, "--pipeline_stages", str(stages)]
    got = by_engine(uneven, tmp_path, micro, accumulation, ranks, "ds_zero1.json", flags)
    assert_same(got, by_hand(uneven, 8, LORA_CONFIG))


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, *NATIVE])
@pytest.mark.parametrize("tuner", TUNERS)
def test_every_tuner_has_the_gradient_computed_by_hand_on_every_family(tuner, family, all_folders, uneven, tmp_path):
    settings = {"train_type": tuner.split("-")[0], **TUNERS[tuner]}
    given = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    given += [*STAGED, "--model_name_or_path", str(all_folders[family]), "--gradient_checkpointing", "True"]
    stage = "ds_zero0.json" if tuner == "full" else "ds_zero1.json"
    got = by_engine(uneven, tmp_path, 2, 4, 2, stage, given)
    # Plain padded rows in eager order sum up otherwise than ours: as for the loop without a pipeline.
    assert_same(got, by_hand(uneven, 8, settings, all_folders[family]), tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ds_file", ["ds_zero0.json", "ds_zero1.json"])
@pytest.mark.parametrize("tuner", ["lora", "ptuning", "full"])
def test_a_run_is_that_of_the_plain_loop(tuner, ds_file, all_folders, uneven, tmp_path):
    """Losses, norms before clipping, validation, packed rows, a short last window; ChatGLM-6B's embedding is tied."""
    given = [text for name, value in TUNERS[tuner].items() for text in (f"--{name}", str(value))]
    flags = ["--train_path", str(uneven), *STEPS, "--train_type", tuner, *given, "--max_grad_norm", "0.3"]
    flags += ["--model_name_or_path", str(all_folders["glm"]), "--per_device_train_batch_size", "1", "--max_len", "200"]
    flags += ["--gradient_accumulation_steps", "3", "--val_path", str(uneven), "--packing", "--ds_file", ds_file]
    folders = {}
    for name, ranks, more in (("plain", 1, ["--join_micro_batches", "False"]), ("staged", 2, STAGED)):
        folders[name] = tmp_path / name
        codes, printed = train([*flags, *more, "--output_dir", str(folders[name])], ranks, tmp_path)
        assert codes == [0] * ranks, printed
    for kind in ("loss", "grad_norm", "eval_loss"):
        of = {name: [row[kind] for row in metrics(folder) if kind in row] for name, folder in folders.items()}
        assert of["staged"] == pytest.approx(of["plain"], rel=1e-5)
        assert of["plain"]
    assert {p.name for p in folders["plain"].iterdir()} == {p.name for p in folders["staged"].iterdir()}
    file = {"lora": "adapter_model", "full": "model"}.get(tuner, "glmft_adapter") + ".safetensors"
    want, got = load_file(folders["plain"] / file), load_file(folders["staged"] / file)
    assert want.keys() == got.keys()
    results = [json.loads((folder / "train_results.json").read_text()) for folder in folders.values()]
    for name in ("trainable_parameters", "total_parameters", "tokens", "supervised_tokens"):
        assert results[0][name] == results[1][name]
    model, tokenizer = glmft.load(folders["staged"])
    assert len(answer(model, tokenizer, ["云川", "岭溪泉"], max_new_tokens=4)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("gpus", "share"), [(2, 4), (4, 2)])
def test_the_launchers_command_line_trains_in_a_pipeline_and_its_adapter_merges(gpus, share, uneven, tmp_path):
    plain = tmp_path / "plain"
    flags = ["--train_path", str(uneven), *STEPS, *LORA, "--gradient_accumulation_steps", "1"]
    codes, printed = train([*flags, "--per_device_train_batch_size", "4", "--output_dir", str(plain)], 1, tmp_path)
    assert codes == [0], printed
    out, bin_ = tmp_path / "out", os.path.dirname(sys.executable)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = os.pathsep.join([bin_, os.environ["PATH"]])
    command = ["deepspeed", "--num_gpus", str(gpus), "--master_port", str(free_port()), "train.py", *flags, *STAGED]
    command += ["--per_device_train_batch_size", str(share), "--pipeline_partition", "time", "--output_dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "  stage 2 of 2 (rank" in done.stdout
    assert "measured: a layer takes" in done.stdout
    assert losses(out) == pytest.approx(losses(plain), rel=1e-4)
    merged = [sys.executable, "merge_lora.py", "--adapter_path", str(out), "--save_path", str(tmp_path / "merged")]
    done = subprocess.run(merged, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    model, tokenizer = glmft.load(tmp_path / "merged")
    assert answer(model, tokenizer, ["云川"], max_new_tokens=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "ranks", "problem"),
    [
        (["--pipeline_stages", "3"], 2, "--pipeline_stages 3: does not divide 2 ranks"),
        (STAGED, 1, "--pipeline_stages 2: does not divide 1 rank"),
        (["--pipeline_stages", "5"], 5, "--pipeline_stages 5: the model has 4 layers, so a stage would have none"),
        ([*STAGED, "--ds_file", "zero2"], 2, "ZeRO-2 splits gradients as they come"),
        ([*STAGED, "--ds_file", "ds_zero3_no_offload.json"], 2, "ZeRO-3 splits gradients as they come"),
        ([*STAGED, "--pipeline_partition", "4,0"], 2, "stage 2 would have no layer"),
    ],
)
def test_what_makes_no_pipeline_is_one_line_and_leaves_nothing(flags, ranks, problem, uneven, tmp_path):
    argv = ["--train_path", str(uneven), *STEPS, *flags, "--output_dir", str(tmp_path / "out")]
    codes, printed = train(argv, ranks, tmp_path)
    assert codes == [2] * ranks
    [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert problem in line
    assert not (tmp_path / "out").exists()
