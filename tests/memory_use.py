"""Tiny models of every layout, and the bytes that one step of them takes, counted by torch's own allocator."""

import gc
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from glmft.dist import World
from glmft.models.chatglm import ChatGLM6BForConditionalGeneration
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
from glmft.models.checkpointing import checkpoint_layers
from glmft.models.configuration import ChatGLM2Config, ChatGLM6BConfig
from glmft.models.native import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM
from glmft.planning.memory import Setting, Zero
from glmft.planning.network import Load
from glmft.planning.run import recomputed_layers
from glmft.planning.shape import Shape, shape_of
from glmft.planning.way import way_of
from glmft.settings.config import TrainConfig
from glmft.training.job import autocast
from glmft.tuners import make_tuner

LAYOUTS = ("glm", "glm2", "native-glm", "native-glm4")
WORDS, LENGTHS, ANSWERS = 1000, (200, 57, 120), (50, 30, 20)
MOMENTS = ("forward", "backward", "step")


def configuration(layout: str) -> Any:
    """Three layers, eight heads of 16."""
    if layout == "glm":
        ids = {"mask_token_id": 989, "gmask_token_id": 990, "bos_token_id": 991, "eos_token_id": 992}
        sizes = {"hidden_size": 128, "num_layers": 3, "num_attention_heads": 8, "inner_hidden_size": 512}
        return ChatGLM6BConfig(vocab_size=WORDS, **sizes, **ids)
    sizes = {"hidden_size": 64, "num_attention_heads": 8}
    if layout == "glm2":
        sizes |= {"kv_channels": 16, "multi_query_group_num": 2, "ffn_hidden_size": 96, "num_layers": 3}
        return ChatGLM2Config(padded_vocab_size=WORDS, seq_length=4096, glmft_family="glm2", **sizes)
    sizes |= {"head_dim": 16, "num_key_value_heads": 2, "intermediate_size": 96, "num_hidden_layers": 3}
    kind = GlmConfig if layout == "native-glm" else Glm4Config
    return kind(vocab_size=WORDS, attention_bias=True, pad_token_id=0, eos_token_id=1, attention_dropout=0.0, **sizes)


CLASSES = {
    "glm": ChatGLM6BForConditionalGeneration,
    "glm2": ChatGLM2ForConditionalGeneration,
    "native-glm": GlmForCausalLM,
    "native-glm4": Glm4ForCausalLM,
}


def shape(layout: str) -> Shape:
    return shape_of(configuration(layout).to_dict())


def model(layout: str, dtype: torch.dtype, config: TrainConfig, every: int = 0) -> torch.nn.Module:
    """Ready to be trained."""
    torch.manual_seed(0)
    base = CLASSES[layout]._from_config(configuration(layout), attn_implementation="sdpa", dtype=dtype)
    made = make_tuner(config).apply(base)
    checkpoint_layers(made, every)
    return made.train()


def batch(layout: str) -> dict[str, Any]:
    """A row of documents whose last tokens are answers."""
    torch.manual_seed(1)
    ids, first = torch.randint(3, 900, (1, sum(LENGTHS))), 0
    made: dict[str, Any] = {"input_ids": ids, "labels": torch.full_like(ids, -100), "documents": LENGTHS}
    targets: list[int] = []
    places = []
    for length, answer in zip(LENGTHS, ANSWERS, strict=True):
        start, first = first + length - answer, first + length
        made["labels"][0, start:first] = ids[0, start:first]
        targets += range(start - 1, first - 1)
        place = torch.arange(length)
        block = (place - (length - answer - 1)).clamp(min=0)
        places.append(torch.stack((place.clamp(max=length - answer - 2), block)) if layout == "glm" else place)
    made |= {"loss_positions": torch.tensor(targets), "position_ids": torch.cat(places, dim=-1)[None]}
    return made | ({"contexts": contexts()} if layout == "glm" else {})


def contexts() -> tuple[int, ...]:
    return tuple(length - answer for length, answer in zip(LENGTHS, ANSWERS, strict=True))


def load(layout: str) -> Load:
    return Load(LENGTHS, sum(ANSWERS), contexts() if layout == "glm" else None)


def setting(layout: str, dtype: str, config: TrainConfig, every: int = 0, **more: Any) -> Setting:
    """What the sums are told of such a run."""
    form = shape(layout)
    recomputed = recomputed_layers(every, form.layers)
    more = {"zero": Zero(0), **more}
    return Setting(form, way_of(config, form), load(layout), dtype, recomputed=recomputed, on_gpu=False, **more)


@dataclass
class Use:
    """Bytes over what was there before.

    Args:
        kept: when the forward pass was through.
        most: at one time, by moment.
    """

    kept: int
    most: dict[str, int]


def measure(made: Any, rows: dict[str, Any], dtype: torch.dtype, step: Any = None, backward: Any = None) -> Use:
    """One step of a model or an engine; without a `step`, forward and backward alone."""
    gc.disable()  # what earlier models left must not go meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        with record_function("moment forward"), autocast(World(0, 0, 1, torch.device("cpu"), dtype)):
            loss = made(**rows, num_items_in_batch=1, return_logits=False, use_cache=False).loss
        with record_function("moment backward"):
            backward(loss) if backward else loss.backward()
        if step:
            del loss
            with record_function("moment step"):
                step()
    gc.enable()
    found = events.profiler.kineto_results.events()
    allocations = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    starts = {e.name().removeprefix("moment "): e.start_ns() for e in found if e.name().startswith("moment ")}
    live, kept, most = 0, 0, dict.fromkeys(starts, 0)
    for time, size in allocations:
        now = max((m for m in starts if starts[m] <= time), key=starts.__getitem__, default="forward")
        live += size
        kept = live if now == "forward" else kept
        most[now] = max(most[now], live)
    return Use(kept, most)
