"""The gradient of one optimizer step is that of the mean loss over its supervised tokens, however it is split."""

from pathlib import Path

import pytest
import torch
from encoding import encoded
from ranks import BASE, LORA, train

import glmft
from glmft.data.collate import collate
from glmft.data.encode import Lengths
from glmft.data.formats import read_records
from glmft.data.sampler import Plan
from glmft.settings.config import TrainConfig
from glmft.training.checkpoint import open_optimizer
from glmft.tuners import make_tuner

SEED = 7
BETA1 = 0.9


def by_hand(path, size: int, tuner_flags: dict, base: Path = BASE) -> dict[str, torch.Tensor]:
    """Gradients of the first window of `size` records, one record at a time, with torch alone."""
    model, tokenizer = glmft.load(base)
    examples, _ = encoded(read_records(path)[0], tokenizer, Lengths(512, 256))
    torch.manual_seed(SEED)
    model = make_tuner(TrainConfig(**tuner_flags)).apply(model)
    window = Plan(len(examples), size, 1, 1, SEED).order(0)[:size]
    chosen = [examples[i] for i in window]
    targets = sum(e.supervised for e in chosen)
    for example in chosen:
        batch = collate([example], tokenizer)
        logits = model(input_ids=batch["input_ids"]).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], reduction="sum") / targets
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def by_engine(path, folder, micro: int, accumulation: int, ranks: int, stage: str, flags: list[str]) -> dict:
    """The same read off Adam's mean after one step, which is (1 - beta1) times the gradient."""
    argv = ["--train_path", str(path), "--max_len", "512", "--max_src_len", "256", "--max_steps", "2"]
    argv += ["--per_device_train_batch_size", str(micro), "--gradient_accumulation_steps", str(accumulation)]
    argv += ["--max_grad_norm", "0", "--save_model_step", "1", "--seed", str(SEED), "--ds_file", stage]
    codes, printed = train([*argv, *flags, "--output_dir", str(folder / "out")], ranks, folder)
    assert codes == [0] * ranks, printed
    packed = open_optimizer(folder / "out" / "checkpoint-1")
    return {k.removeprefix("exp_avg/"): t / (1 - BETA1) for k, t in packed.items() if k.startswith("exp_avg/")}


def assert_same(got: dict, want: dict, tolerance: float = 1e-5) -> None:
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        error = (got[name] - gradient).abs().max()
        assert error <= tolerance * gradient.abs().max() + 1e-12, f"{name}: {error}"


LORA_CONFIG = {"train_type": "lora", "lora_module_name": "query_key_value,dense", "lora_dim": 4, "lora_dropout": 0.0}
SPLITS = [(8, 1, 1), (4, 2, 1), (1, 8, 1), (2, 2, 2)]
APART = ["--join_micro_batches", "False"]


@pytest.mark.parametrize(("micro", "accumulation", "ranks"), SPLITS)
def test_every_split_of_a_window_gives_the_gradient_computed_by_hand(micro, accumulation, ranks, uneven, tmp_path):
    want, flags = by_hand(uneven, 8, LORA_CONFIG), [*LORA, *APART]
    assert_same(by_engine(uneven, tmp_path, micro, accumulation, ranks, "ds_zero2_no_offload.json", flags), want)


def test_micro_batches_that_run_together_give_the_gradient_computed_by_hand(uneven, tmp_path):
    want = by_hand(uneven, 8, LORA_CONFIG)
    assert_same(by_engine(uneven, tmp_path, 1, 4, 2, "ds_zero2_no_offload.json", LORA), want)


@pytest.mark.parametrize(
    "stage",
    ["ds_zero0.json", "ds_zero1.json", "ds_zero3_no_offload.json", "ds_zero2_offload.json", "ds_zero3_offload.json"],
)
def test_every_zero_stage_on_two_ranks_gives_the_gradient_computed_by_hand(stage, uneven, tmp_path):
    want = by_hand(uneven, 8, LORA_CONFIG)
    assert_same(by_engine(uneven, tmp_path, 2, 2, 2, stage, [*LORA, *APART]), want)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_short_last_window_is_a_step_too_even_where_a_rank_has_no_record(ranks, uneven, tmp_path):
    """Ten records in windows of 16: one window, whose last micro-batches are short or empty."""
    want = by_hand(uneven, 10, LORA_CONFIG)
    assert_same(by_engine(uneven, tmp_path, 4, 4 // ranks, ranks, "ds_zero2_no_offload.json", LORA), want)


@pytest.mark.parametrize("ranks", [1, 2])
def test_packed_rows_give_the_gradient_of_their_documents(ranks, uneven, tmp_path):
    """Ten documents in a few rows, all of them in one window; with two ranks the rows are dealt out."""
    want = by_hand(uneven, 10, LORA_CONFIG)
    flags = [*LORA, "--packing", "--max_len", "300"]
    assert_same(by_engine(uneven, tmp_path, 4, 4 // ranks, ranks, "ds_zero2_no_offload.json", flags), want)
    assert "documents packed into" in (tmp_path / "rank0.log").read_text(encoding="utf-8")


def test_the_full_model_under_zero3_gives_the_gradient_computed_by_hand(uneven, tmp_path):
    want = by_hand(uneven, 8, {"train_type": "full"})
    flags = ["--train_type", "full"]
    assert_same(by_engine(uneven, tmp_path, 4, 1, 2, "ds_zero3_no_offload.json", flags), want)


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        (
            "ds_zero2_no_offload.json",
            {"train_type": "lora", "lora_module_name": "query_key_value", "lora_dropout": 0.0},
        ),
        ("ds_zero3_no_offload.json", {"train_type": "full"}),
    ],
)
def test_chatglm_6b_on_two_ranks_has_the_gradient_computed_by_hand(stage, flags, official_folders, uneven, tmp_path):
    """Its head is its embedding; its masks and positions come from the collator, by hand from the model."""
    want = by_hand(uneven, 8, flags, official_folders["glm"])
    given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    given += ["--model_name_or_path", str(official_folders["glm"])]
    assert_same(by_engine(uneven, tmp_path, 2, 2, 2, stage, given), want, tolerance=1e-4)
