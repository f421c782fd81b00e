"""What a run sees of itself: scores of its answers, its best checkpoint, when to stop, whether the memory is enough."""

import json
import re
from pathlib import Path

import pytest
import torch
from ranks import SLOW, STAGED, metrics, train
from safetensors.torch import load_file

import glmft
from glmft.inference.generation import answer
from glmft.training.evaluation import scores

STEPS = ["--max_len", "512", "--per_device_train_batch_size", "2", "--show_loss_step", "1", "--train_type", "lora"]


def figures(folder: Path, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in metrics(folder) if name in row}


@pytest.mark.parametrize(
    ("family", "stage", "ranks"),
    [
        ("glm2", "2_no_offload", 1),
        ("glm3", "3_no_offload", 2),
        ("glm", "0", 2),
        pytest.param("glm4", "2_no_offload", 2, marks=pytest.mark.slow),
        pytest.param("native-glm4", "3_no_offload", 2, marks=pytest.mark.slow),
    ],
)
def test_scores_in_the_loop_are_those_of_the_saved_model(family, stage, ranks, all_folders, uneven, tmp_path):
    """Every rank answers its share, under ZeRO-3 all together; predict's own path gives the same scores."""
    out = tmp_path / "out"
    flags = ["--train_path", str(uneven), "--val_path", str(uneven), *STEPS, "--max_steps", "4", "--eval_steps", "2"]
    flags += ["--predict_with_generate", "--eval_samples", "5", "--max_new_tokens", "12", "--save_best", "bleu-4"]
    flags += ["--per_device_eval_batch_size", "2", "--model_name_or_path", str(all_folders[family])]
    flags += ["--save_model_step", "1000", "--ds_file", f"ds_zero{stage}.json", "--output_dir", str(out)]
    codes, printed = train(flags, ranks, tmp_path)
    assert codes == [0] * ranks, printed
    rows = [json.loads(line) for line in uneven.read_text(encoding="utf-8").splitlines()][:5]
    model, tokenizer = glmft.load(out)
    answers = answer(model, tokenizer, [row["instruction"] + row["input"] for row in rows], max_new_tokens=12)
    want = scores(answers, [row["output"] for row in rows])
    assert {name: figures(out, name)[4] for name in want} == pytest.approx(want)
    best = max(figures(out, "bleu-4").values())
    assert f"best bleu-4 {best:.4f} at step" in printed
    [step] = re.findall(r"best bleu-4 .* at step (\d+)", printed)
    assert (out / "best").resolve() == out / f"checkpoint-{step}"
    assert json.loads((out / "trainer_state.json").read_text())["best_metric"] == best


@pytest.mark.parametrize("how", [[], pytest.param(STAGED, marks=SLOW)])
def test_a_run_stops_when_patience_ends_and_keeps_the_best(how, uneven, tmp_path):
    """At a rate this high the validation loss soon rises."""
    out = tmp_path / "out"
    flags = ["--train_path", str(uneven), "--val_path", str(uneven), *STEPS, "--max_steps", "60", "--eval_steps", "2"]
    flags += [*how, "--learning_rate", "0.3", "--save_best", "eval_loss", "--early_stopping_patience", "2"]
    flags += ["--save_model_step", "2", "--save_total_limit", "2", "--output_dir", str(out)]
    codes, printed = train(flags, 2, tmp_path)
    assert codes == [0, 0], printed
    losses = figures(out, "eval_loss")
    best = min(losses, key=losses.get)
    last = max(losses)
    assert last < 60
    assert last == best + 2 * 2
    assert sorted(p.name for p in out.glob("checkpoint-*")) == sorted({f"checkpoint-{best}", f"checkpoint-{last}"})
    assert (out / "best").resolve() == out / f"checkpoint-{best}"
    model, _ = glmft.load(out / "best")
    assert model is not None
    codes, printed = train([*flags, "--resume", "yes"], 2, tmp_path)
    assert codes == [0, 0], printed
    assert sorted(p.name for p in out.glob("checkpoint-*")) == sorted({f"checkpoint-{best}", f"checkpoint-{last}"})
    assert f"is finished: {last} of 60 steps" in printed


@pytest.mark.parametrize(
    "stage", ["2_offload", "3_no_offload", *(pytest.param(stage, marks=SLOW) for stage in ("0", "1", "pipeline"))]
)
def test_trying_the_longest_batch_first_changes_no_bit(stage, uneven, tmp_path):
    saved = []
    for first in ("True", "False"):
        flags = ["--train_path", str(uneven), *STEPS, "--max_steps", "3", "--longest_batch_first", first]
        flags += STAGED if stage == "pipeline" else ["--ds_file", f"ds_zero{stage}.json"]
        flags += ["--output_dir", str(tmp_path / first)]
        codes, printed = train(flags, 2, tmp_path)
        assert codes == [0, 0], printed
        assert ("the longest micro-batch fits: 2 rows of at most" in printed) == (first == "True")
        saved.append(load_file(tmp_path / first / "adapter_model.safetensors"))
    assert all(torch.equal(saved[1][name], tensor) for name, tensor in saved[0].items())


def test_too_little_memory_shows_before_the_first_step_and_says_what_helps(official_folders, tmp_path):
    data = tmp_path / "long.json"
    rows = [{"instruction": "云", "output": "川" * length} for length in (3, 3, 12_000, 12_000)]
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    flags = ["--train_path", str(data), "--max_len", "20000", "--train_type", "full", "--max_steps", "1"]
    flags += ["--model_name_or_path", str(official_folders["glm"]), "--per_device_train_batch_size", "2"]
    codes, printed = train([*flags, "--output_dir", str(tmp_path / "out")], 1, tmp_path, address_bytes=5 << 29)
    assert codes == [4], printed
    assert "Traceback" not in printed
    assert "step 1/1" not in printed
    [told] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "out of memory" in told
    assert "in this order: (1) --gradient_checkpointing saves about" in told
    assert "--per_device_train_batch_size 1 with --gradient_accumulation_steps 2" in told
