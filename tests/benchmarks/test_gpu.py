"""The benchmark for a GPU, at a small size on a CPU: every line of it but those that ask the device."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from ranks import PRELOADED
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.arms import WARM, Clock, Finished, measure, planned_mib
from benchmarks.gpu.report import Findings
from benchmarks.gpu.work import ANSWERED, CHATGLM2_6B, SMALL, WORKS, arithmetic, documents, our_model, settings
from benchmarks.training.columns import Padding
from glmft.data.collate import one_row

SHAPE = SMALL | {"num_layers": 6, "ffn_hidden_size": 256}
# Products added in place, which torch's counter does not know.
IN_PLACE = {torch.ops.aten.addmm_: lambda added, a, b, **rest: 2 * a[0] * a[1] * b[1]}
FIGURES = {
    **{"step": 0.5, "steps": 10, "tokens_per_second": 32768.0, "flops": 2e9, "peak_mib": 20000.0},
    **{"model_mib": 12000.0, "planned_mib": 19500.0, "checkpointing": True},
}


@pytest.mark.parametrize("work", ["lora-16k", "ptuning-16k"])
def test_the_stated_arithmetic_is_what_a_step_computes(work):
    """All products but attention's, which torch's counter does not count in halves; as counted by torch."""
    work = WORKS[work].cut(24)
    model = our_model(SHAPE, settings(work, "cpu"), "cpu")
    [[rows]] = documents(work, SHAPE["padded_vocab_size"], 1)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        model(**one_row(rows, Padding()), num_items_in_batch=1, return_logits=False).loss.backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for op, count in counts.items() if "attention" not in str(op))
    stated = arithmetic(work, SHAPE)
    assert stated.total - stated.attention == pytest.approx(products, rel=0.15)  # the last layer skips tokens


def test_the_real_shape_has_its_six_billion_numbers():
    stated = arithmetic(WORKS["lora-1x1560"], CHATGLM2_6B)
    assert stated.frozen / (4 * 1_560) == pytest.approx(5.71e9, rel=0.01)
    assert stated.attention == 6 * 1_560**2 * 4096 * 28
    assert stated.head == 4 * 65_024 * 4096 * (1_560 // ANSWERED)


def test_the_plan_has_a_peak_for_all_work_beside_the_weights():
    weights = 2 * 6.2e9 / 2**20
    for work in WORKS.values():
        kept, again = (planned_mib(work, CHATGLM2_6B, "cuda", checkpointing) for checkpointing in (False, True))
        assert weights < again < kept < 10 * weights


def test_a_clock_leaves_warm_steps_out_and_ends_the_loop_when_all_are_counted():
    clock, made = Clock("cpu", steps=4, seconds=60), []
    with pytest.raises(Finished):
        made.extend(clock.each([0] * 99))
    assert clock.steps == WARM + 4
    assert len(clock.taken) == 4


def test_without_a_gpu_one_line_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("here is one")
    assert gpu.main([]) != 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    assert "sees no CUDA GPU" in printed.out


def test_findings_have_a_row_for_each_figure_and_a_reason_for_each_that_lacks(tmp_path):
    found = Findings(tmp_path, "python -m benchmarks.gpu", "cpu", tests=["3 passed"])
    found.note("lora-16k", "glmft", FIGURES)
    found.note("lora-16k", "trainer", "OutOfMemoryError: too much")
    found.rate = 4e9
    found.write(9.0)
    page = found.markdown.read_text(encoding="utf-8")
    row = "| LoRA, 16,384 tokens | glmft | 32,768 | 500.0 | 50% | 20,000 | 12,000 | 19,500 | with checkpointing |"
    assert row in page
    assert "- LoRA, 16,384 tokens, Trainer + peft, logits at labels only: OutOfMemoryError: too much" in page
    assert json.loads(found.json.read_text())["speeds"]["lora-16k glmft"] == FIGURES


def _measured(work: str, arm: str, checkpointing: bool, place: str) -> None:
    torch.set_num_threads(1)
    speed = measure(arm, WORKS[work].cut(16), SMALL, "cpu", Clock("cpu", 1, 60), checkpointing)
    Path(place).write_text(json.dumps(speed.as_json()))
    os._exit(0)


@pytest.mark.parametrize(
    ("work", "arm", "checkpointing"),
    [
        ("lora-1x1560", "glmft", False),
        pytest.param("lora-1x1560", "trainer", False, marks=pytest.mark.slow),
        pytest.param("lora-16k", "glmft", True, marks=pytest.mark.slow),
        pytest.param("lora-16k", "trainer", True, marks=pytest.mark.slow),
        pytest.param("ptuning-16k", "glmft", False, marks=pytest.mark.slow),
        pytest.param("ptuning-16k", "trainer", False, marks=pytest.mark.slow),
    ],
)
def test_an_arm_is_measured(work, arm, checkpointing, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    place = tmp_path / "speed.json"
    process = context.Process(target=_measured, args=(work, arm, checkpointing, str(place)))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    speed = json.loads(place.read_text())
    assert speed["tokens_per_second"] > 0
    assert speed["steps"] == 1
