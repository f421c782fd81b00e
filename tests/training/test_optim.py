import math

import pytest
import torch

from glmft.settings.config import TrainConfig
from glmft.training.optim import learning_rate, make_optimizer, parameter_groups, set_learning_rate

RATE = 2e-3


def rates(total: int, **settings) -> list[float]:
    config = TrainConfig(learning_rate=RATE, **settings)
    return [learning_rate(step, total, config) / RATE for step in range(total)]


def test_warm_up_rises_in_equal_steps_and_never_starts_at_zero():
    assert rates(20, warmup_ratio=0.2)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(("ratio", "steps"), [(0.21, 3), (0.2, 2), (0.01, 1), (0.0, 0)])
def test_a_part_of_a_step_of_warm_up_is_a_whole_one(ratio, steps):
    """As transformers has it: what is asked for is never shortened."""
    values = rates(10, warmup_ratio=ratio, lr_scheduler_type="constant")
    assert values == pytest.approx([min(1.0, (step + 1) / max(1, steps)) for step in range(10)])


@pytest.mark.parametrize(("given", "steps"), [(5, 5), (0.25, 5), (0, 0), (1, 1), (30, 20)])
def test_warm_up_steps_outrank_the_ratio(given, steps):
    rising = rates(20, warmup_steps=given, warmup_ratio=0.9, lr_scheduler_type="constant")
    assert rising[:steps] == pytest.approx([(step + 1) / (given if given >= 1 else 5) for step in range(steps)])
    assert rising[steps:] == [1.0] * (20 - steps)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_the_fall_starts_at_the_top_and_approaches_the_floor(shape):
    values = rates(1000, warmup_ratio=0, lr_scheduler_type=shape, min_lr_ratio=0.1)
    assert values[0] == pytest.approx(1.0)
    assert values[500] == pytest.approx(0.55)
    assert values[-1] == pytest.approx(0.1, abs=2e-3)
    assert values == sorted(values, reverse=True)


def test_cosine_equals_torchs_own_schedule():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1 * RATE)
    want = []
    for _ in range(50):
        want.append(schedule.get_last_lr()[0] / RATE)
        optimizer.step()
        schedule.step()
    assert rates(50, warmup_ratio=0, min_lr_ratio=0.1) == pytest.approx(want)


def test_the_fall_takes_all_steps_after_the_warm_up():
    """To where the step after the last one would be at the floor."""
    values = rates(50, warmup_ratio=0.2, lr_scheduler_type="linear", min_lr_ratio=0.0)
    assert values[10:] == pytest.approx([1 - i / 40 for i in range(40)])
    values = rates(50, warmup_ratio=0.2, min_lr_ratio=0.1)
    assert values[10:] == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * i / 40)) / 2 for i in range(40)])


def test_constant_stays_after_the_warm_up():
    assert rates(10, warmup_ratio=0.1, lr_scheduler_type="constant") == [1.0] * 10


def test_weight_decay_acts_on_matrices_alone_and_frozen_parameters_are_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    model[2].requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.1)
    assert decayed["params"] == [model[0].weight]
    assert decayed["weight_decay"] == 0.1
    assert plain["params"] == [model[0].bias, model[1].weight, model[1].bias]
    assert plain["weight_decay"] == 0.0


def test_the_optimizer_has_the_runs_settings_and_every_group_the_steps_rate():
    model = torch.nn.Linear(3, 4)
    config = TrainConfig(learning_rate=RATE, weight_decay=0.3, adam_beta1=0.7, adam_beta2=0.8)
    optimizer = make_optimizer(model, config)
    assert type(optimizer) is torch.optim.AdamW
    assert [(g["lr"], g["betas"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (RATE, (0.7, 0.8), 0.3),
        (RATE, (0.7, 0.8), 0.0),
    ]
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_each_ratio_of_the_rate_has_groups_of_its_own():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1), lambda name: 4.0 if name.startswith("1.") else 1.0)
    set_learning_rate(optimizer, 0.5)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = {name: (groups[id(p)]["lr"], groups[id(p)]["weight_decay"]) for name, p in model.named_parameters()}
    assert found == {"0.weight": (0.5, 0.1), "0.bias": (0.5, 0.0), "1.weight": (2.0, 0.1), "1.bias": (2.0, 0.0)}
