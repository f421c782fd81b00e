from dataclasses import replace

import pytest
import torch

from glmft.planning.memory import Setting, Zero
from glmft.planning.run import Run, fixed_load, setting_of, shipped_zero
from glmft.planning.shape import OFFICIAL
from glmft.settings.config import TrainConfig
from glmft.training.memory import DTYPES, advice

SHAPE = OFFICIAL["chatglm2-6b"]


def run(zero: Zero, ranks: int = 1, batch: int = 4, **flags) -> Run:
    """LoRA on ChatGLM2-6B, rows of 1,024 tokens."""
    config, load = TrainConfig(**flags), fixed_load(batch, 1024, 512, SHAPE.layout)
    setting = setting_of(config, SHAPE, load, "bf16", zero, ranks, True, config.quantization_bit)
    return Run(setting, 1000, batch, 1)


def saved(line: str) -> float:
    """GiB that a line promises."""
    return float(line.partition("saves about ")[2].split()[0])


def test_advice_comes_in_order_with_what_each_step_saves():
    asked = run(shipped_zero(0, False, SHAPE.hidden), ranks=4, batch=16, train_type="freeze", freeze_last_n=4)
    ways = advice(asked, can_quantise=False)
    wanted = ["--gradient_checkpointing", "--per_device_train_batch_size 8 with --gradient_accumulation_steps 2"]
    wanted += ["ds_zero2_no_offload.json", "ds_zero3_no_offload.json", "ds_zero2_offload.json"]
    assert [part in way for part, way in zip(wanted, ways, strict=True)] == [True] * 5


def test_what_is_promised_is_the_difference_of_two_plans():
    asked = run(shipped_zero(2, False, SHAPE.hidden))
    first = advice(asked, can_quantise=True)[0]
    everything = frozenset(range(SHAPE.layers))
    changed = Run(replace(asked.setting, recomputed=everything), 1000, 4, 1)
    assert saved(first) == pytest.approx((asked.memory.peak - changed.memory.peak) / 2**30, abs=0.005)
    assert f"of {asked.memory.peak / 2**30:.2f} GiB" in first


def test_four_bits_save_what_the_layers_weights_lose():
    [way] = [w for w in advice(run(Zero(0)), can_quantise=True) if "--quantization_bit" in w]
    of_layers = 2 * 28 * sum(a * b for a, b in SHAPE.linear_modules.values())
    assert saved(way) == pytest.approx(0.75 * of_layers / 2**30, rel=0.1)


def test_what_is_done_already_is_not_advised():
    done = run(shipped_zero(3, True, SHAPE.hidden), batch=1, gradient_checkpointing=True)
    ways = " ".join(advice(done, can_quantise=False))
    assert "checkpointing" not in ways
    assert "ds_zero" not in ways
    assert "--quantization_bit" not in ways
    assert "--max_len" in ways


def test_every_number_format_of_a_run_has_its_name():
    assert {getattr(torch, name).itemsize for name in DTYPES} == {2, 4}
    assert {
        Setting(SHAPE, run(Zero(0)).setting.way, fixed_load(1, 8, 4, "glm2"), d).formats.computed
        for d in DTYPES.values()
    } == {2, 4}
