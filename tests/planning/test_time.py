"""The sums of time and traffic against what can be computed by hand."""

from dataclasses import replace

import pytest

from glmft.planning.cards import find_card
from glmft.planning.run import Run, fixed_load, setting_of, shipped_zero
from glmft.planning.shape import OFFICIAL
from glmft.planning.time import gathered, pace_of, step_time, traffic, work
from glmft.settings.config import TrainConfig

SHAPE = OFFICIAL["chatglm2-6b"]
LINEAR = 28 * sum(a * b for a, b in SHAPE.linear_modules.values())
PACE = pace_of(find_card("a100-80g"), "bf16", None, None, 12.5, 8)


def setting(stage: int = 2, ranks: int = 8, rows: int = 1, **flags):
    config, load = TrainConfig(**{"train_type": "full", **flags}), fixed_load(rows, 1024, 512, SHAPE.layout)
    return setting_of(config, SHAPE, load, "bf16", shipped_zero(stage, False, SHAPE.hidden), ranks, True, None)


def test_a_forward_pass_is_two_operations_a_weight_and_token():
    attention = 28 * 4 * 1024 * 1024 / 2 * SHAPE.queries
    last = 28 * sum(a * b for n, (a, b) in SHAPE.linear_modules.items() if n != "query_key_value") / 28
    expected = 2 * 1024 * LINEAR - 2 * 512 * last + attention  # the last layer leaves out what no loss is asked of
    assert work(setting()).forward == pytest.approx(expected, rel=1e-6)


def test_full_training_is_three_forward_passes_and_an_adapters_about_two():
    of = work(setting())
    assert of.backward / of.forward == pytest.approx(2, abs=0.05)
    of = work(setting(train_type="lora"))
    assert of.backward / of.forward == pytest.approx(1, abs=0.05)


def test_checkpointing_adds_a_forward_pass_of_the_layers_above_the_lowest_trained():
    of = work(setting(gradient_checkpointing=1))
    assert of.recomputed == of.forward
    of = work(setting(train_type="freeze", freeze_last_n=7, gradient_checkpointing=1))
    assert of.recomputed == pytest.approx(of.forward * 7 / 28, rel=0.06)


def test_kept_states_of_frozen_layers_leave_the_lower_forward_passes_out():
    flags = {"train_type": "freeze", "freeze_last_n": 7}
    kept, again = work(setting(**flags, cache_frozen_activations=True)), work(setting(**flags))
    assert kept.forward == pytest.approx(again.forward * 7 / 28, rel=0.06)


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 3), (2, 2 * 4 + 1)])
def test_what_a_rank_sends_in_a_step_of_four_micro_batches(stage, times):
    s = setting(stage)
    assert traffic(s, 4).sent(8) == pytest.approx(times * 7 / 8 * 4 * s.numbers)


def test_zero_3_gathers_weights_twice_and_scatters_gradients():
    s = setting(3)
    assert gathered(s) == 2 * s.weight_bytes
    moved = traffic(s, 1)
    assert moved.sent(8) == pytest.approx(7 / 8 * (2 * s.weight_bytes + 4 * s.numbers))
    assert traffic(replace(s, ranks=1), 1).sent(1) == 0


def test_the_network_between_hosts_counts_from_the_ninth_gpu_on():
    eight, sixteen = (step_time(setting(3, ranks), 1, PACE) for ranks in (8, 16))
    assert sixteen.traffic > 15 * eight.traffic
    assert sixteen.waited > 0.9 * (sixteen.traffic - sixteen.compute)


def test_an_epoch_is_its_steps():
    run = Run(setting(), 1000, 1, 4)
    assert run.epoch(PACE) == pytest.approx(32 * step_time(run.setting, 4, PACE).total)
