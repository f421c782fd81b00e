"""A model cut into stages: each reads and holds its own part, and hidden states pass through all of them."""

import dataclasses
from collections import defaultdict

import pytest
import torch
from encoding import encoded

from glmft.data.collate import one_row
from glmft.data.encode import Lengths
from glmft.data.formats import single
from glmft.dist import World
from glmft.elsewhere import is_weightless
from glmft.models.loading import load_config, load_model
from glmft.models.stages import Cut, load_stage, settle, shared_parameters
from glmft.settings.config import TrainConfig
from glmft.tokenizers.loading import load_tokenizer
from glmft.training.pipeline import Stage
from glmft.tuners import make_tuner
from glmft.tuners.base import cast_trainable
from glmft.weights import StoredTensors

WORLD = World(0, 0, 3, torch.device("cpu"), torch.float32, stages=3)
LAYERS = (1, 1, 1)
CASES = [
    ("glm", "full", {}),
    ("glm2", "lora", {"lora_module_name": "all-linear", "lora_dropout": 0.0, "lora_dim": 2}),
    ("glm3", "freeze", {}),
    ("glm4", "ptuning", {"pre_seq_len": 3, "prefix_projection": True, "prefix_hidden_size": 8, "prefix_dropout": 0.0}),
    ("native-glm4", "prompt", {"pre_seq_len": 3}),
]


def tuned(model, tuner):
    torch.manual_seed(3)
    model = tuner.apply(model).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # else A has no gradient
                parameter.normal_(0, 0.02)
    return model


def make_stage(folder, tuner, number: int) -> Stage:
    cut, world = Cut(LAYERS, number), dataclasses.replace(WORLD, rank=number)
    model = tuned(load_stage(load_config(folder), folder, cut, torch.float32, tuner.owned_by_base), tuner)
    settle(model, cut, world)
    return Stage(model, cut, world, anchors=0)


def micro_batch(folder) -> dict:
    tokenizer = load_tokenizer(folder)
    records = [single("云川岭", "溪泉峰云"), single("云", "川")]
    return one_row(encoded(records, tokenizer, Lengths(64, 32))[0], tokenizer)


def gradients(models) -> dict[str, torch.Tensor]:
    """By name, what is on several stages summed up."""
    total: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
    for model in models:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] = total[name] + parameter.grad
    return dict(total)


@pytest.mark.parametrize(
    ("family", "train_type", "settings"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case[1] == "freeze" else []) for case in CASES],
)
def test_three_stages_one_behind_the_other_have_the_loss_and_the_gradients_of_the_whole(
    family, train_type, settings, all_folders
):
    folder, tuner = all_folders[family], make_tuner(TrainConfig(train_type=train_type, **settings))
    batch = micro_batch(folder)
    whole = tuned(load_model(load_config(folder), folder, torch.float32), tuner)
    loss = whole(**batch, num_items_in_batch=1).loss
    loss.backward()
    passed, stages = batch["input_ids"], [make_stage(folder, tuner, number) for number in range(3)]
    for stage in stages:
        stage.batches = iter([batch])
        passed = stage(passed)
    passed.backward()
    torch.testing.assert_close(passed, loss, rtol=1e-6, atol=0)
    want, got = gradients([whole]), gradients(stage.whole[0] for stage in stages)
    assert want.keys() == got.keys()
    for name, gradient in want.items():
        assert (got[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-12, name


@pytest.mark.parametrize("family", ["glm", "glm2"])
def test_a_stage_reads_no_other_tensors_than_its_own(family, all_folders, monkeypatch):
    read, real = set(), StoredTensors.__getitem__
    monkeypatch.setattr(StoredTensors, "__getitem__", lambda self, name: (read.add(name), real(self, name))[1])
    folder = all_folders[family]
    model = load_stage(load_config(folder), folder, Cut(LAYERS, 1), torch.float32, lambda names: set())
    weights = {name for name in read if "inv_freq" not in name}
    assert weights == {name for name, _ in model.named_parameters() if ".layers.1." in name}
    assert weights == {name for name, p in model.named_parameters() if not is_weightless(p)}


def test_what_is_on_several_stages_is_told_with_them(all_folders):
    folder, tuner = all_folders["glm"], make_tuner(TrainConfig(train_type="full"))
    model = tuned(load_stage(load_config(folder), folder, Cut(LAYERS, 1), torch.float32, tuner.owned_by_base), tuner)
    [(shared, stages)] = shared_parameters(model, Cut(LAYERS, 1))
    assert shared is model.get_input_embeddings().weight
    assert shared is model.get_output_embeddings().weight
    assert stages == (0, 2)


@pytest.mark.parametrize("trained", [{"freeze_last_n": 1}, {"freeze_module_name": "layers.1."}])
def test_nothing_is_kept_for_a_backward_pass_below_what_trains(trained, all_folders):
    """What a stage receives from frozen ones gets a gradient of zeros, which costs none of its layers anything."""
    folder, tuner = all_folders["glm2"], make_tuner(TrainConfig(train_type="freeze", **trained))
    batch, first = micro_batch(folder), 2 if "freeze_last_n" in trained else 1
    passed = batch["input_ids"]
    for number in range(first + 1):
        stage = make_stage(folder, tuner, number)
        stage.anchors.append(torch.nn.Parameter(torch.zeros(1)))  # as where a group of the optimizer has nothing here
        stage.batches = iter([batch])
        kept: list[torch.Tensor] = []
        received = passed.detach().requires_grad_() if number else passed
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=kept: to.append(t) or t, lambda t: t):
            passed = stage(received)
        assert (sum(t.numel() for t in kept) <= 1) == (number < first)
        passed.sum().backward()
        assert number == 0 or not received.grad.any()


def test_what_trains_elsewhere_takes_no_memory_in_any_number_format(all_folders):
    folder, tuner = all_folders["glm2"], make_tuner(TrainConfig(train_type="full"))
    model = tuner.apply(load_stage(load_config(folder), folder, Cut(LAYERS, 1), torch.bfloat16, tuner.owned_by_base))
    for dtype in (torch.float32, torch.bfloat16):
        cast_trainable(model, dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert {name for name, p in model.named_parameters() if not is_weightless(p)} == {
            name for name, _ in model.named_parameters() if ".layers.1." in name
        }
