"""The loop's decisions, each a plain function; whole runs are in tests/integration."""

import math
from types import SimpleNamespace

import pytest

from glmft.data.sampler import Plan
from glmft.engine import (
    StepResult,
    grad_norm,
    is_eval_step,
    is_over,
    is_save_step,
    note_best,
    saves_to_come,
    step_problem,
)
from glmft.settings.config import TrainConfig
from glmft.training.state import TrainerState
from glmft.training.zero_state import scaler_numbers, set_scaler_numbers

PLAN = Plan(records=10, micro_batch=2, accumulation=1, world_size=1, seed=0)  # 5 steps an epoch


def steps(decide, total: int = 12, **settings) -> list[int]:
    config = TrainConfig(**settings)
    return [n for n in range(1, total + 1) if decide(TrainerState(step=n, total_steps=total), PLAN, config)]


def test_checkpoints_come_at_the_ends_of_epochs_or_by_steps_and_at_the_end():
    assert steps(is_save_step) == [5, 10, 12]
    assert steps(is_save_step, save_model_step=4) == [4, 8, 12]
    assert steps(is_save_step, save_model_step=100) == [12]


def test_a_better_metric_than_ever_is_saved_at_once_if_it_is_watched():
    state = TrainerState(step=3, total_steps=12, best_step=3)
    assert is_save_step(state, PLAN, TrainConfig(save_best="eval_loss"))
    assert not is_save_step(state, PLAN, TrainConfig())


def test_validation_comes_at_the_ends_of_epochs_or_by_steps_and_at_the_end():
    assert steps(is_eval_step) == [5, 10, 12]
    assert steps(is_eval_step, eval_steps=7) == [7, 12]


def test_patience_counts_validations_without_a_better_value():
    state, config = TrainerState(total_steps=99), TrainConfig(early_stopping_patience=2)
    seen = []
    for step, loss in enumerate([3.0, 2.0, 2.5, 1.5, 1.5, 1.6], start=1):
        state.step = step
        note_best(state, {"eval_loss": loss}, config)
        seen.append((state.best, state.best_step, is_over(state, config)))
    assert seen == [(3, 1, False), (2, 2, False), (2, 2, False), (1.5, 4, False), (1.5, 4, False), (1.5, 4, True)]


def test_a_run_is_over_after_its_last_step():
    assert [is_over(TrainerState(step=n, total_steps=3), TrainConfig()) for n in (2, 3, 4)] == [False, True, True]


def result(loss: float = 1.0, norm: float | None = None, applied: bool = False) -> StepResult:
    return StepResult([loss], loss, norm, applied)


def test_a_loss_that_is_no_number_is_never_skipped():
    assert step_problem(result(math.nan), skipped=1, most_skipped=20) == "the loss is nan"


def test_a_gradient_that_is_no_number_stops_at_once_without_a_loss_scaler():
    assert step_problem(result(), skipped=1, most_skipped=0) == "the gradient is not finite"


def test_the_loss_scaler_may_skip_some_steps_in_a_row():
    assert [step_problem(result(), skipped, most_skipped=2) for skipped in (0, 1, 2)] == [None] * 3
    assert step_problem(result(), skipped=3, most_skipped=2) == "the gradient is not finite for 3 steps"


@pytest.mark.parametrize(("own", "engines", "shown"), [(2.0, None, 2.0), (None, 3.0, 3.0), (None, math.inf, None)])
def test_the_norm_is_deepspeeds_or_under_zero_0_our_own(own, engines, shown):
    engine = SimpleNamespace(get_global_grad_norm=lambda: engines)
    assert grad_norm(engine, result(norm=own, applied=True)) == shown


def test_the_loss_scalers_numbers_go_through_a_checkpoint():
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    def engine():
        scaler = DynamicLossScaler(
            init_scale=2**16, scale_window=100, min_scale=1, delayed_shift=2, consecutive_hysteresis=False
        )
        return SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler))

    first, second = engine(), engine()
    scaler = first.optimizer.loss_scaler
    scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis = 2.0**12, 40, 17, 1
    assert scaler_numbers(first) != scaler_numbers(second)
    set_scaler_numbers(second, scaler_numbers(first))
    assert scaler_numbers(second) == scaler_numbers(first)
    assert second.optimizer.loss_scaler.last_overflow_iter == 17


def test_of_two_equal_metrics_the_one_of_lower_loss_is_best_and_patience_waits_on():
    state, config = TrainerState(total_steps=99), TrainConfig(save_best="f1", early_stopping_patience=9)
    seen = []
    for step, (f1, loss) in enumerate(
        [(0.0, 3.0), (0.0, 2.0), (0.0, 2.5), (0.5, 4.0), (0.5, 4.0), (0.5, 1.0)], start=1
    ):
        state.step = step
        note_best(state, {"eval_loss": loss, "f1": f1}, config)
        seen.append((state.best, state.best_step, state.waited))
    assert seen == [(0.0, 1, 0), (0.0, 2, 1), (0.0, 2, 2), (0.5, 4, 0), (0.5, 4, 1), (0.5, 6, 2)]


def test_the_checkpoints_that_are_still_to_come_are_counted_from_where_a_run_stands():
    def count(step: int, **settings) -> int:
        return saves_to_come(TrainerState(step=step, total_steps=12), PLAN, TrainConfig(**settings))

    assert [count(step) for step in (0, 5, 11, 12)] == [3, 2, 1, 0]
    assert count(0, save_model_step=1) == 12
