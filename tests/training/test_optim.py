import pytest
import torch

from glmft.settings.config import TrainConfig
from glmft.training.optim import learning_rate, parameter_groups

RATE = 2e-3


def rates(total: int, **settings) -> list[float]:
    config = TrainConfig(learning_rate=RATE, **settings)
    return [learning_rate(step, total, config) / RATE for step in range(total)]


def test_warm_up_rises_in_equal_steps_and_never_starts_at_zero():
    assert rates(20, warmup_ratio=0.2)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


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
