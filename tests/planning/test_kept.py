"""What the sums say that a step keeps and needs, beside what torch's allocator counts in that step."""

import pytest
import torch
from memory_use import LAYOUTS, batch, measure, model, setting, shape

from glmft.planning.shape import numbers
from glmft.planning.tape import backward_peak, bytes_kept, forward_peak
from glmft.planning.way import way_of
from glmft.settings.config import TrainConfig

LORA = {"train_type": "lora", "lora_dim": 4, "lora_module_name": "all-linear"}
FLAGS = {
    "lora": {**LORA, "lora_dropout": 0.0},
    "lora with dropout": LORA,
    "lora of one module": {"train_type": "lora", "lora_dim": 4},
    "lora of upper layers": {**LORA, "lora_module_name": "layers.1.mlp.dense_4h_to_h,layers.2.mlp.dense_4h_to_h"},
    "lora of the mlp": {**LORA, "lora_module_name": "mlp"},
    "full": {"train_type": "full"},
    "freeze": {"train_type": "freeze", "freeze_last_n": 2},
    "freeze one part": {"train_type": "freeze", "freeze_last_n": 2, "freeze_part": "attention"},
    "ptuning": {"train_type": "ptuning"},
    "ptuning without projection": {"train_type": "ptuning", "prefix_projection": False, "prefix_dropout": 0.0},
    "prompt": {"train_type": "prompt"},
    "prompt with mlp": {"train_type": "prompt", "prompt_encoder": "mlp"},
    "prompt with lstm": {"train_type": "prompt", "prompt_encoder": "lstm"},
}
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
EXACT = 1.04  # of what stays behind the forward pass
NEAR, LSTM = 1.1, 1.2  # of the most at one time; what an LSTM does inside is an estimate
FAST = {
    ("glm", "lora with dropout", "fp32", 0),
    ("glm", "ptuning", "bf16", 0),
    ("glm2", "lora", "bf16", 0),
    ("glm2", "lora with dropout", "fp32", 1),
    ("glm2", "full", "bf16", 0),
    ("glm2", "freeze", "fp32", 0),
    ("glm2", "ptuning", "fp32", 1),
    ("glm2", "prompt", "fp32", 0),
    ("native-glm", "lora", "bf16", 0),
    ("native-glm4", "freeze", "bf16", 0),
}
OFFICIAL = ("lora of upper layers",)  # by names of the official layouts; so little of these that passes dominate
CASES = [
    (a, b, c, d)
    for a in LAYOUTS
    for b in FLAGS
    for c in FORMATS
    for d in (0, 1, 2)
    if b not in OFFICIAL or (d == 0 and not a.startswith("native"))
]


def ratio(predicted: int, measured: int) -> float:
    return max(predicted / measured, measured / predicted)


@pytest.mark.parametrize(
    ("layout", "tuner", "dtype", "every"),
    [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in CASES],
)
def test_a_steps_memory_is_as_predicted(layout, tuner, dtype, every):
    config = TrainConfig(**FLAGS[tuner])
    made = model(layout, FORMATS[dtype], config, every)
    use = measure(made, batch(layout), FORMATS[dtype])
    tapes = setting(layout, dtype, config, every).network.tapes()
    most = max(forward_peak(tapes), backward_peak(tapes))
    small = 1.1 if every == 1 else EXACT  # of little else than one vector a layer
    assert ratio(bytes_kept(tapes), use.kept) < small, (bytes_kept(tapes), use.kept)
    assert ratio(most, max(use.most.values())) < (LSTM if "lstm" in tuner else NEAR), (
        forward_peak(tapes),
        backward_peak(tapes),
        use.most,
    )


@pytest.mark.parametrize(("layout", "tuner"), sorted({(layout, tuner) for layout, tuner, _, _ in CASES}))
def test_parameters_are_counted_to_the_last_number(layout, tuner):
    with torch.device("meta"):
        made = model(layout, torch.float32, TrainConfig(**FLAGS[tuner]))
    form = shape(layout)
    way = way_of(TrainConfig(**FLAGS[tuner]), form)
    assert way.numbers(form) == sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert numbers(form.parameters) + way.added == sum(p.numel() for p in made.parameters())
