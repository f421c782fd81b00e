"""What is measured on an accelerator: a model's shape, what trains, the documents of a step, and their arithmetic."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.training.columns import LINEAR, LORA, PREFIX
from glmft.data.encode import Example
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
from glmft.models.checkpointing import checkpoint_layers
from glmft.models.configuration import ChatGLM2Config
from glmft.models.to_native import native_config
from glmft.settings.config import TrainConfig
from glmft.tuners import make_tuner
from glmft.tuners.base import cast_trainable

CHATGLM2_6B = {
    "num_layers": 28,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "multi_query_group_num": 2,
    "padded_vocab_size": 65_024,
    "seq_length": 32_768,
    "glmft_family": "glm2",
}
SMALL = CHATGLM2_6B | {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 2,
    "kv_channels": 32,
    "padded_vocab_size": 128,
}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
ANSWERED = 4  # one token in so many is supervised


@dataclass(frozen=True)
class Work:
    """What trains, and the lengths of the documents of a step; `title` is that of the table."""

    title: str
    flags: dict[str, Any]
    lengths: tuple[int, ...]

    def cut(self, longest: int) -> "Work":
        """The same with short documents."""
        return Work(self.title, self.flags, tuple(min(n, longest) for n in self.lengths))


# Sixteen documents of like length, 16,384 tokens together, as grouping by length gives them.
SIXTEEN = tuple(1024 + 8 * (i - 8) + 4 for i in range(16))
WORKS = {
    "lora-16k": Work("LoRA, 16,384 tokens", LORA, SIXTEEN),
    "lora-1x1560": Work("LoRA, 1 x 1,560", LORA, (1_560,)),
    "ptuning-16k": Work("P-Tuning, 16,384 tokens", PREFIX, SIXTEEN),
}


def documents(work: Work, words: int, steps: int) -> list[list[list[Example]]]:
    """Optimizer steps of one micro-batch each, of random words."""
    generator = random.Random(0)

    def one(length: int) -> Example:
        ids = [generator.randrange(1, words) for _ in range(length)]
        return Example(ids, ((length - max(1, length // ANSWERED), length),), "")

    return [[[one(length) for length in work.lengths]] for _ in range(steps)]


def settings(work: Work, device: str, **more: Any) -> TrainConfig:
    """glmft's, for work on a device."""
    dtype = "bf16" if device == "cuda" else "fp32"
    batch = {"per_device_train_batch_size": len(work.lengths), "weight_decay": 0.0}
    return TrainConfig(**work.flags, **batch, device=device, dtype=dtype, **more)


def our_model(shape: dict[str, Any], config: TrainConfig, device: str) -> nn.Module:
    """glmft's ChatGLM2 with random weights that are made on the device, and what trains in float32."""
    with torch.device(device):
        model = ChatGLM2ForConditionalGeneration._from_config(
            ChatGLM2Config(**shape), dtype=DTYPES[device], attn_implementation=config.attn_implementation
        )
        model = make_tuner(config).apply(model)
    cast_trainable(model, torch.float32)
    checkpoint_layers(model, config.gradient_checkpointing)
    return model.train()


def their_model(shape: dict[str, Any], work: Work, device: str, checkpointing: bool) -> nn.Module:
    """transformers' GLM of that shape, with peft."""
    import peft
    from transformers import GlmForCausalLM

    config = native_config(ChatGLM2Config(**shape), None)
    with torch.device(device):
        model = GlmForCausalLM._from_config(config, dtype=DTYPES[device], attn_implementation="sdpa")
        if work.flags["train_type"] == "lora":
            adapter = peft.LoraConfig(
                r=work.flags["lora_dim"], lora_alpha=work.flags["lora_alpha"], target_modules=list(LINEAR)
            )
        else:
            adapter = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=work.flags["pre_seq_len"])
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model = peft.get_peft_model(model, adapter)
    cast_trainable(model, torch.float32)
    return model.train()


@dataclass(frozen=True)
class Arithmetic:
    """Floating point operations of a step, forward and backward, without what checkpointing computes again.

    A frozen matrix takes 2 operations a number and token forward and 2 for the gradient of its input: 4 N; one that
    trains 2 more for its own. The head is one at supervised tokens alone. Causal attention of a document of s tokens
    takes 2 products of s^2 / 2 numbers by h forward and 4 backward, in each layer.

    Args:
        frozen: 4 N for all tokens.
        head, trained, attention: the others.
    """

    frozen: float
    head: float
    trained: float
    attention: float

    @property
    def total(self) -> float:
        return self.frozen + self.head + self.trained + self.attention


def arithmetic(work: Work, shape: dict[str, Any]) -> Arithmetic:
    hidden, layers, ffn = shape["hidden_size"], shape["num_layers"], shape["ffn_hidden_size"]
    heads = shape["num_attention_heads"] * shape["kv_channels"]
    groups = 2 * shape["multi_query_group_num"] * shape["kv_channels"]
    linear = [(hidden, heads + groups), (heads, hidden), (hidden, 2 * ffn), (ffn, hidden)]
    tokens, supervised = sum(work.lengths), sum(max(1, n // ANSWERED) for n in work.lengths)
    rank = work.flags.get("lora_dim", 0)
    virtual = work.flags.get("pre_seq_len", 0)
    seen = sum(n * n / 2 + n * virtual for n in work.lengths)
    return Arithmetic(
        frozen=4 * layers * sum(a * b for a, b in linear) * tokens,
        head=4 * shape["padded_vocab_size"] * hidden * supervised,
        trained=6 * layers * rank * sum(a + b for a, b in linear) * tokens,
        attention=12 * layers * heads * seen,
    )


def matmul_rate(device: str, size: int = 8192, times: int = 20) -> float:
    """Operations a second of a product of two square matrices, in the number format of the runs."""
    import time

    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[device]) for _ in range(2))
    settle = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        a @ b
    settle()
    began = time.perf_counter()
    for _ in range(times):
        a @ b
    settle()
    rate = times * 2 * size**3 / (time.perf_counter() - began)
    del a, b
    torch.cuda.empty_cache()  # for the processes that are measured
    return rate
