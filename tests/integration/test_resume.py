"""A run that goes on from a checkpoint ends with the same bits as one that never stopped."""

import json
import shutil
import signal

import pytest
import torch
from ranks import NATIVE, SLOW, STAGED, losses, metrics, train
from safetensors.torch import load_file

import glmft
from glmft.family import FAMILIES
from glmft.inference.generation import answer

KEPT = ("step", "loss", "learning_rate", "grad_norm", "eval_loss")
LAYOUTS = [*FAMILIES, *NATIVE]

TUNERS = {
    "lora": ["--train_type", "lora", "--lora_dropout", "0.1", "--lora_dim", "4", "--warmup_steps", "3"],
    "lora-plus": ["--train_type", "lora", "--lora_module_name", "all-linear", "--loraplus_lr_ratio", "4"],
    "lora-dora": ["--train_type", "lora", "--use_dora", "--modules_to_save", "final_layernorm"],
    "lora-pissa": ["--train_type", "lora", "--init_lora_weights", "pissa", "--lora_dim", "4"],
    "ptuning": ["--train_type", "ptuning", "--pre_seq_len", "4", "--prefix_hidden_size", "24"],
    "prompt": [
        "--train_type",
        "prompt",
        "--pre_seq_len",
        "4",
        "--prompt_encoder",
        "lstm",
        "--prompt_hidden_size",
        "24",
    ],
    "freeze": ["--train_type", "freeze", "--freeze_last_n", "1", "--freeze_part", "attention"],
    "full": ["--train_type", "full"],
}
NORMS = dict.fromkeys(NATIVE, "norm")
WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
STEPS = ["--max_len", "512", "--max_steps", "6", "--save_model_step", "2", "--show_loss_step", "1"]
# Ten records: 4 steps an epoch with 1 rank, 2 with 2. Saved at 5; killed in the second micro-batch of the seventh step.
WINDOWS = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "3", "--join_micro_batches", "False"]
LONG = [*WINDOWS, "--max_len", "512", "--max_steps", "8", "--save_model_step", "5", "--show_loss_step", "2"]
KILLED = 1 + 6 * 3 + 1  # forward passes, that of the longest batch first
CHOSEN = [
    ("lora", "glm3", "ds_zero2_no_offload.json", 1),
    ("lora-plus", "glm2", "ds_zero3_no_offload.json", 2),
    ("lora-pissa", "glm", "ds_zero1.json", 2),
    ("ptuning", "glm", "ds_zero2_no_offload.json", 2),
    ("prompt", "glm2", "ds_zero3_no_offload.json", 2),
    ("freeze", "glm", "ds_zero3_no_offload.json", 2),
    ("full", "glm2", "ds_zero0.json", 1),
    ("ptuning", "native-glm4", "ds_zero3_no_offload.json", 2),
]
STAGES = ["ds_zero0.json", "ds_zero2_no_offload.json", "ds_zero3_no_offload.json"]
MATRIX = [
    (tuner, LAYOUTS[(i + 2 * j + ranks) % len(LAYOUTS)], stage, ranks)
    for i, tuner in enumerate(TUNERS)
    for j, stage in enumerate(STAGES)
    for ranks in (1, 2)
]


PIPELINES = [
    ("lora-plus", "glm2", "pipeline", 2),
    ("lora-pissa", "glm3", "pipeline", 2),
    ("ptuning", "glm", "pipeline", 2),
    ("prompt", "native-glm4", "pipeline", 2),
    ("full", "glm", "pipeline", 4),
]


def how(stage: str) -> list[str]:
    """Flags for a ZeRO stage or a pipeline."""
    return STAGED if stage == "pipeline" else ["--ds_file", stage]


def lines(folder) -> list[dict]:
    """The log lines of a run, without what depends on the clock."""
    return [{k: row[k] for k in ("step", "loss", "learning_rate", "grad_norm")} for row in metrics(folder)]


def outcome(folder) -> tuple:
    """What a run says of its answers and weights; all of it is known."""
    results = json.loads((folder / "train_results.json").read_text(encoding="utf-8"))
    answers = (results["first_answer"], results["last_answer"])
    assert results["weight_change"] is not None
    assert (None in answers) == (json.loads((folder / "train_config.json").read_text())["pipeline_stages"] > 1)
    return (*answers, results["weight_change"])


@pytest.mark.parametrize(
    ("tuner", "family", "stage", "ranks"),
    [*CHOSEN, *(pytest.param(*case, marks=SLOW) for case in [*MATRIX, *PIPELINES] if case not in CHOSEN)],
)
def test_a_run_killed_in_mid_window_ends_with_the_same_bits(tuner, family, stage, ranks, all_folders, uneven, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    common = ["--train_path", str(uneven), "--model_name_or_path", str(all_folders[family]), *how(stage)]
    common += [*LONG, *(flag.replace("final_layernorm", NORMS.get(family, flag)) for flag in TUNERS[tuner])]
    codes, printed = train([*common, "--output_dir", str(whole)], ranks, tmp_path)
    assert codes == [0] * ranks, printed
    common += ["--output_dir", str(resumed)]
    codes, printed = train(common, ranks, tmp_path, die_after=KILLED)
    # In a pipeline the first stages are ahead: when they are killed, the others have lost them.
    assert set(codes) <= {-signal.SIGKILL, 5} if stage == "pipeline" else set(codes) == {-signal.SIGKILL}, printed
    codes, printed = train([*common, "--resume", "yes"], ranks, tmp_path)
    assert codes == [0] * ranks, printed
    assert lines(resumed) == lines(whole)
    assert [line["step"] for line in lines(whole)] == [2, 4, 6, 8]
    assert outcome(resumed) == outcome(whole)
    file = WEIGHTS.get(tuner.split("-")[0], "glmft_adapter.safetensors")
    want, got = load_file(whole / file), load_file(resumed / file)
    early = load_file(whole / "checkpoint-5" / file)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    assert any(not torch.equal(tensor, early[name]) for name, tensor in want.items())
    model, tokenizer = glmft.load(resumed)
    assert len(answer(model, tokenizer, ["云川", "岭溪泉"], max_new_tokens=4)) == 2


@pytest.mark.slow
def test_parts_of_epochs_and_shares_of_steps_go_on_alike(uneven, tmp_path):
    """2.4 epochs of 9 rows in steps of 3 are 8 steps; two rows are looked at every 0.25 of them."""
    common = ["--train_path", str(uneven), *WINDOWS, "--max_len", "512", "--num_train_epochs", "2.4", *TUNERS["lora"]]
    common += ["--val_ratio", "0.1", "--eval_steps", "0.25", "--save_steps", "0.5", "--logging_steps", "0.1"]
    for name, harm in (("whole", {}), ("resumed", {"die_after": KILLED})):
        codes, printed = train([*common, "--output_dir", str(tmp_path / name)], 1, tmp_path, **harm)
        assert codes == [-signal.SIGKILL if harm else 0], printed
    codes, printed = train([*common, "--output_dir", str(tmp_path / "resumed"), "--resume"], 1, tmp_path)
    assert codes == [0], printed
    assert "going on from checkpoint-4 of 8 steps" in printed
    strip = lambda folder: [{k: v for k, v in row.items() if k in KEPT} for row in metrics(folder)]  # noqa: E731
    assert strip(tmp_path / "resumed") == strip(tmp_path / "whole")
    assert [row["step"] for row in metrics(tmp_path / "whole") if "eval_loss" in row] == [2, 4, 6, 8]
    assert [row["learning_rate"] for row in metrics(tmp_path / "whole") if "loss" in row][:3] == [
        pytest.approx(1e-3 * step / 3) for step in (1, 2, 3)
    ]


TOPOLOGIES = [(stage, ranks) for stage in ("0", "1", "2_no_offload", "3_no_offload") for ranks in (1, 2)]
THROUGH_PIPELINES = [
    (("pipeline", 2), ("2_no_offload", 2)),
    (("3_no_offload", 1), ("pipeline", 4)),
    (("pipeline", 4), ("0", 1)),
    (("0", 1), ("pipeline", 2)),
]
MOVED = [(("2_no_offload", 2), ("3_no_offload", 1)), (("3_no_offload", 2), ("0", 2))]


def run_of(topology, uneven, out, tmp_path, *more: str) -> None:
    stage, ranks = topology
    flags = ["--train_path", str(uneven), *STEPS, "--train_type", "lora", "--lora_dropout", "0", "--lora_dim", "4"]
    shares = ranks // 2 if stage == "pipeline" else ranks
    flags += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", str(2 // shares)]
    flags += [
        *how("pipeline" if stage == "pipeline" else f"ds_zero{stage}.json"),
        "--output_dir",
        str(out),
        "--loraplus_lr_ratio",
        "4",
        *more,
    ]
    codes, printed = train(flags, ranks, tmp_path)
    assert codes == [0] * ranks, printed


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *MOVED,
        *(
            pytest.param(before, after, marks=pytest.mark.slow)
            for before in TOPOLOGIES
            for after in TOPOLOGIES
            if (before, after) not in MOVED
        ),
        *(pytest.param(*moved, marks=SLOW, id=f"through-pipeline{i}") for i, moved in enumerate(THROUGH_PIPELINES)),
    ],
)
def test_a_run_goes_on_with_other_ranks_and_another_stage(before, after, uneven, tmp_path):
    """The same records in the same order; losses within 1e-5 of theirs, weights within 1e-5 of the largest."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    run_of(before, uneven, whole, tmp_path)
    moved.mkdir()
    shutil.copytree(whole / "checkpoint-4", moved / "checkpoint-4")
    shutil.copy(whole / "train_config.json", moved)
    run_of(after, uneven, moved, tmp_path, "--resume", "4")
    assert losses(moved) == pytest.approx(losses(whole)[4:], rel=1e-5)
    want, got = (load_file(folder / "adapter_model.safetensors") for folder in (whole, moved))
    for name, tensor in want.items():
        assert (got[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max(), name


def test_a_torn_checkpoint_is_passed_over_with_a_warning(uneven, tmp_path):
    common = ["--train_path", str(uneven), *STEPS, *TUNERS["lora"]]
    common += ["--output_dir", str(tmp_path / "out")]
    assert train(common, 1, tmp_path)[0] == [0]
    torn = tmp_path / "out" / "checkpoint-6" / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    codes, printed = train([*common, "--resume", "yes"], 1, tmp_path)
    assert codes == [0], printed
    assert "checkpoint-6" in printed
    assert "trying the one before" in printed
    assert "step 4/6" not in printed
    assert "step 5/6" in printed
