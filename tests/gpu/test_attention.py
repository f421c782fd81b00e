"""Every attention backend on rows of documents, against eager attention: loss and gradients of what trains.

On a CPU in `make test`, on an accelerator in `make gpu`.
"""

import copy
import importlib.util

import pytest
import torch
from torch import Tensor

from glmft.data.collate import one_row, to_device
from glmft.data.encode import Example
from glmft.models.chatglm import ChatGLM6BForConditionalGeneration
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
from glmft.models.configuration import ChatGLM2Config, ChatGLM6BConfig
from glmft.settings.config import TrainConfig
from glmft.tuners import make_tuner
from glmft.tuners.base import cast_trainable

WORDS, CONTEXT = 97, 5
SIZES = {"hidden_size": 128, "num_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "glm2": (
        ChatGLM2ForConditionalGeneration,
        ChatGLM2Config(
            **SIZES,
            padded_vocab_size=WORDS,
            kv_channels=64,
            multi_query_group_num=1,
            ffn_hidden_size=160,
            seq_length=512,
            glmft_family="glm2",
        ),
    ),
    "glm": (
        ChatGLM6BForConditionalGeneration,
        ChatGLM6BConfig(**SIZES, vocab_size=WORDS, inner_hidden_size=160, max_sequence_length=512),
    ),
}
FLAGS = {"lora": {"lora_module_name": "all-linear", "lora_dropout": 0.0}, "ptuning": {"prefix_dropout": 0.0}}
LENGTHS = (37, 16, 130, 9)
# Largest relative difference of the loss; of the gradients' direction, 1 - cosine.
NEAR = {torch.float32: (5e-5, 1e-5), torch.bfloat16: (1e-2, 1e-2), torch.float16: (2e-3, 1e-3)}
FLASH = pytest.mark.skipif(not importlib.util.find_spec("flash_attn"), reason="flash_attn is not installed")
GPU = pytest.mark.gpu
CASES = [
    pytest.param("cpu", "sdpa", torch.float32),
    pytest.param("cpu", "sdpa", torch.bfloat16),
    pytest.param("cuda", "sdpa", torch.float32, marks=GPU),
    pytest.param("cuda", "sdpa", torch.bfloat16, marks=GPU),
    pytest.param("cuda", "sdpa", torch.float16, marks=GPU),
    pytest.param("cuda", "eager", torch.bfloat16, marks=GPU),
    pytest.param("cuda", "flex_attention", torch.float32, marks=GPU),
    pytest.param("cuda", "flex_attention", torch.bfloat16, marks=GPU),
    pytest.param("cuda", "flash_attention_2", torch.bfloat16, marks=[GPU, FLASH]),
    pytest.param("cuda", "flash_attention_2", torch.float16, marks=[GPU, FLASH]),
]


class Tokens:
    """What `one_row` asks of a tokenizer."""

    pad_token_id = 0

    def __init__(self, family: str):
        self.family = family

    def positions(self, ids: list[int]) -> list:
        if self.family == "glm2":
            return list(range(len(ids)))
        inside = range(1, len(ids) - CONTEXT + 1)  # of the answer
        return [[*range(CONTEXT), *[CONTEXT - 1 for _ in inside]], [*[0] * CONTEXT, *inside]]


def rows() -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randint(1, WORDS, (n,), generator=generator).tolist() for n in LENGTHS]
    return [Example(ids, ((CONTEXT + 1, len(ids)),), "") for ids in draw]


def loss_and_gradients(family: str, tuner: str, device: str, backend: str, dtype: torch.dtype) -> tuple[float, Tensor]:
    """Of one batch; the gradients are one vector in float32 on the CPU."""
    kind, config = copy.deepcopy(CONFIGS[family])
    torch.manual_seed(0)
    model = kind._from_config(config, attn_implementation=backend)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.1)
    model = make_tuner(TrainConfig(train_type=tuner, **FLAGS[tuner])).apply(model).to(device, dtype).train()
    cast_trainable(model, torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        loss = model(
            **to_device(one_row(rows(), Tokens(family)), torch.device(device)), return_logits=False, use_cache=False
        ).loss
    loss.backward()
    gradients = [p.grad.flatten().float().cpu() for p in model.parameters() if p.requires_grad]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("tuner", FLAGS)
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("device", "backend", "dtype"), CASES, ids=str)
def test_a_backend_gives_the_loss_and_the_gradients_of_eager_attention(device, backend, dtype, family, tuner):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    if family == "glm" and backend not in ("sdpa", "eager"):
        pytest.skip("ChatGLM-6B sees its context in both directions, which this backend is not given")
    right = loss_and_gradients(family, tuner, device, "eager", torch.float32)
    found = loss_and_gradients(family, tuner, device, backend, dtype)
    of_loss, of_direction = NEAR[dtype]
    assert found[0] == pytest.approx(right[0], rel=of_loss)
    assert 1 - torch.cosine_similarity(found[1], right[1], dim=0).item() < of_direction
    assert found[1].norm().item() == pytest.approx(right[1].norm().item(), rel=10 * of_loss)
