"""The optimizer, and the learning rate as a pure function of the step."""

import math
from typing import Any

from glmft.config import TrainConfig


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Rate of optimizer step `step` (0-based) out of `total`: linear warm-up, then the chosen fall to the floor."""
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    floor = config.min_lr_ratio
    return config.learning_rate * (floor + (1 - floor) * shape[config.lr_scheduler_type])


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; biases, norms and other vectors do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if _dimensions(p) >= 2]
    vectors = [p for p in trainable if _dimensions(p) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _dimensions(parameter: Any) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 empties the shape itself


def make_optimizer(model: Any, config: TrainConfig) -> Any:
    """AdamW (Loshchilov and Hutter, 2019) over the trainable parameters; torch's own, so that nothing is compiled."""
    import torch

    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
    )


def set_learning_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
