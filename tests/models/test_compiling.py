"""Layers that are compiled around their attention: the same losses and gradients, and one code for rows of all lengths.

Compiling takes a minute of CPU, so most of this is slow.
"""

import random
import types

import pytest
import torch
from encoding import encoded

from glmft.data.collate import one_row
from glmft.data.encode import Lengths
from glmft.data.formats import single
from glmft.data.packing import join
from glmft.errors import ConfigError
from glmft.family import FAMILIES
from glmft.models import compiling
from glmft.models.checkpointing import checkpoint_layers
from glmft.models.compiling import compile_layers, in_training, require_compiler
from glmft.models.loading import load_config, load_model
from glmft.settings.config import TrainConfig
from glmft.tokenizers.loading import load_tokenizer
from glmft.tuners import make_tuner

WORDS = "云川岭溪泉峰湖岛林松柏梅兰竹菊荷莲桃杏梨枫桐"
TUNERS = {
    "lora": {"lora_module_name": "all-linear", "lora_dim": 4, "lora_dropout": 0.2},
    "lora-still": {"train_type": "lora", "lora_module_name": "all-linear", "lora_dropout": 0.0},
    "lora-dora": {"train_type": "lora", "use_dora": True, "lora_dropout": 0.0},
    "ptuning": {"pre_seq_len": 3, "prefix_hidden_size": 24, "prefix_dropout": 0.0},
    "prompt": {"pre_seq_len": 3},
    "freeze": {"freeze_last_n": 1},
    "full": {},
}
CASES = [(tuner, family, 0) for family in (*FAMILIES, "native-glm", "native-glm4") for tuner in ("lora", "ptuning")]
CASES += [(tuner, "glm2", 0) for tuner in ("lora-dora", "prompt", "freeze", "full")]
CASES += [("lora", "glm2", 1), ("ptuning", "glm", 2), ("lora", "native-glm4", 1), ("freeze", "glm3", 1)]


@pytest.fixture
def counted():
    """What the compiler has counted; nothing compiled before is there, and dropout draws as in eager mode."""
    import torch._dynamo
    import torch._inductor.config
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    with torch._inductor.config.patch(fallback_random=True):
        yield counters


def pair(folder, tuner: str, dtype=torch.float32, every: int = 0, **changes) -> list[torch.nn.Module]:
    """The same model in eager mode and compiled, in training."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = load_model(load_config(folder, **changes), folder, dtype)
        models.append(make_tuner(TrainConfig(**{"train_type": tuner} | TUNERS[tuner])).apply(model).train())
        with torch.no_grad():
            for name, p in models[-1].named_parameters():
                if "lora_B" in name:
                    p.normal_(0.0, 0.1)
        checkpoint_layers(models[-1], every)
    compile_layers(models[1])
    return models


def batches(folder, count: int) -> list[dict]:
    """Rows of one to three documents; no two rows have the same lengths."""
    draw, tokenizer, found = random.Random(0), load_tokenizer(folder), []
    for i in range(count):
        texts = [("".join(draw.choices(WORDS, k=3 + i)), WORDS[: 2 + i % 7]) for _ in range(1 + i % 3)]
        examples, _ = encoded([single(*text) for text in texts], tokenizer, Lengths(200, 100))
        found.append(one_row([join(examples)] if i % 2 else examples, tokenizer))
    return found


def loss_and_gradients(model, batch, dtype=torch.float32) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(**batch, num_items_in_batch=1, return_logits=False, use_cache=False).loss
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def require_alike(models, batch, tolerance: float, dtype=torch.float32) -> None:
    (loss, gradients), (other, others) = (loss_and_gradients(model, batch, dtype) for model in models)
    assert other == pytest.approx(loss, rel=tolerance)
    assert gradients.keys() == others.keys() != set()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (others[name] - gradient).abs().max() <= tolerance * max(gradient.abs().max(), 0.1 * largest), name


@pytest.mark.slow
@pytest.mark.parametrize(("tuner", "family", "every"), CASES)
def test_losses_and_gradients_are_those_of_eager_mode_and_lengths_compile_nothing_anew(
    tuner, family, every, all_folders, counted
):
    models = pair(all_folders[family], tuner, every=every)
    rows = batches(all_folders[family], 20)
    assert len({batch["documents"] for batch in rows}) == 20
    graphs = []
    for batch in rows:
        require_alike(models, batch, tolerance=1e-5)
        graphs.append(counted["stats"]["unique_graphs"])
    assert 2 <= graphs[4] == graphs[-1] <= 16
    assert not counted["graph_break"] or tuner == "lora-dora"  # peft's code looks at the name of an adapter


@pytest.mark.slow
@pytest.mark.parametrize("family", ["glm", "glm2", "native-glm"])
def test_under_bf16_they_are_as_close_to_those_in_fp32_as_eager_mode_is(family, all_folders, counted):
    exact, _ = pair(all_folders[family], "lora-still")
    models, errors = pair(all_folders[family], "lora-still", torch.bfloat16), [0.0, 0.0]
    for batch in batches(all_folders[family], 6):
        truth = loss_and_gradients(exact, batch)[1]
        for i, model in enumerate(models):
            found = loss_and_gradients(model, batch, torch.bfloat16)[1]
            errors[i] += sum((found[n] - gradient).square().sum().item() for n, gradient in truth.items()) ** 0.5
    assert 0 < errors[1] <= 1.3 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4", "8", "nf4"])
def test_over_a_quantised_base_too(bits, official_folders, counted):
    models = pair(official_folders["glm2"], "lora", quantization_bit=bits)
    for batch in batches(official_folders["glm2"], 4):
        require_alike(models, batch, tolerance=1e-5)


def test_compiled_is_what_trains_alone(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda method, dynamic: lambda x: ("compiled", method(x)))
    module = types.SimpleNamespace(training=True)
    run = in_training(module, lambda x: x + 1)
    assert run(1) == ("compiled", 2)
    module.training = False
    assert run(1) == 2


def test_a_layer_that_cannot_be_compiled_is_one_line(monkeypatch):
    def broken(x):
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("C++ compile error"), None)

    monkeypatch.setattr(torch, "compile", lambda method, dynamic: broken)
    run = in_training(types.SimpleNamespace(training=True), lambda x: x + 1)
    with pytest.raises(ConfigError, match=r"--torch_compile: a layer cannot be compiled \(.*C\+\+ compile error"):
        run(1)


def test_parts_are_what_lies_around_attention(all_folders):
    for family, count in (("glm", 3), ("glm2", 3), ("native-glm", 3), ("native-glm4", 5)):
        model = load_model(load_config(all_folders[family]), all_folders[family], torch.float32)
        layers = [m for m in model.modules() if isinstance(m, compiling.GradientCheckpointingLayer)]
        assert [len(compiling.parts_of(layer)) for layer in layers] == [count] * 3


def test_a_machine_that_compiles_nothing_is_one_line(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found\n in this and that")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError) as caught:
        require_compiler(torch.device("cpu"))
    [line] = caught.value.problems
    assert line.startswith("--torch_compile: nothing can be compiled here (No working C++ compiler found")
    assert line.endswith("install g++, or leave it out")
