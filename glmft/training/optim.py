"""The optimizer, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable
from typing import Any

from glmft.dist import World, whole_shape
from glmft.elsewhere import is_elsewhere
from glmft.settings.config import TrainConfig


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Rate of optimizer step `step` (0-based) out of `total`: linear warm-up, then the chosen fall to the floor."""
    warmup = warmup_of(config, total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    floor = config.min_lr_ratio
    return config.learning_rate * (floor + (1 - floor) * shape[config.lr_scheduler_type])


def warmup_of(config: TrainConfig, total: int) -> int:
    """Optimizer steps in which the rate rises."""
    steps = config.warmup_steps
    if steps is None or 0 < steps < 1:
        return math.ceil((config.warmup_ratio if steps is None else steps) * total)
    return int(steps)


def parameter_groups(
    model: Any, weight_decay: float, rate_ratio: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters: matrices decay; biases, norms and other vectors do not.

    Every stage has the same groups, some perhaps without a parameter that is here.

    Args:
        rate_ratio: learning rate of a parameter, by its name, over the run's; each ratio has groups of its own.
    """
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if len(whole_shape(parameter)) >= 2 else 0.0
            groups.setdefault((decay, rate_ratio(name)), []).extend([] if is_elsewhere(parameter) else [parameter])
    return [{"params": ps, "weight_decay": decay, "rate_ratio": ratio} for (decay, ratio), ps in groups.items()]


def make_optimizer(model: Any, config: TrainConfig, rate_ratio: Callable[[str], float] = lambda name: 1.0) -> Any:
    """AdamW (Loshchilov and Hutter, 2019) over the trainable parameters; torch's own, so that nothing is compiled."""
    import torch

    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay, rate_ratio),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
    )


def set_learning_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_ratio"]


def total_norm(model: Any, world: World) -> Any:
    """Norm of the gradient over all stages, a tensor in float32. Collective in a pipeline."""
    import torch
    import torch.distributed as dist

    counted = (p for p in model.parameters() if p.grad is not None and not getattr(p, "ds_pipe_replicated", False))
    norm = torch.nn.utils.get_total_norm([p.grad for p in counted]).float().to(world.device)
    if world.stages > 1:
        norm = norm.square()
        dist.all_reduce(norm)
        norm = (norm / world.data_size).sqrt()
    return norm
