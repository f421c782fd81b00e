"""What is trained in each column of the table, on which rows, and the two models that have the same weights."""

import json
import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GlmForCausalLM

from glmft.data.encode import Example
from glmft.data.packing import join, pack
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
from glmft.models.configuration import ChatGLM2Config
from glmft.models.to_native import native_config, pieces_of
from glmft.settings.config import TrainConfig
from glmft.tuners import make_tuner

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "examples" / "adgen" / "train.json"
WINDOW = 8  # records in an optimizer step
LONGEST = 1_560  # tokens in a row
CHARACTERS = 1.6  # in a token of the official vocabulary, on average
RATE = 1e-3
GATE = 5  # optimizer steps whose losses must agree
# The same AdamW in every arm: constant rate, no decay, betas of torch and of the Trainer, clipping at 1.
OPTIMIZER = {
    **{"learning_rate": RATE, "weight_decay": 0.0, "adam_beta2": 0.999, "max_grad_norm": 1.0},
    **{"warmup_ratio": 0.0, "lr_scheduler_type": "constant"},
}
LORA = {"train_type": "lora", "lora_module_name": "all-linear", "lora_dim": 16, "lora_alpha": 30, "lora_dropout": 0.0}
PREFIX = {"train_type": "ptuning", "pre_seq_len": 16, "prefix_projection": False, "prefix_dropout": 0.0}
FREEZE = {"train_type": "freeze", "freeze_last_n": 1}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Column:
    """What is trained; the most words of the vocabulary; rows in a micro-batch of a step of `WINDOW`."""

    flags: dict[str, Any]
    words: int = 65_024
    rows: int = WINDOW


COLUMNS = {
    "lora": Column(LORA),
    "lora-small": Column(LORA, words=2_048),
    "lora-1x8": Column(LORA, rows=1),
    "ptuning": Column(PREFIX),
    "freeze": Column(FREEZE),
}


@dataclass(frozen=True)
class Case:
    """One arm of one column at one size.

    Args:
        words: of the vocabulary, at most.
        data: file whose records' lengths the rows have.
        steps: optimizer steps that are measured.
        longest: row, in tokens.
        core: the one that all arms run on, in turns.
    """

    column_name: str
    arm: str
    hidden: int
    layers: int
    words: int
    data: Path
    steps: int
    longest: int = LONGEST
    core: int | None = None

    @property
    def column(self) -> Column:
        return COLUMNS[self.column_name]

    @property
    def vocabulary(self) -> int:
        return min(self.words, self.column.words)

    @property
    def first_position(self) -> int:
        """peft counts its prefix as positions: the other arms count so too, where there is one."""
        return self.column.flags.get("pre_seq_len", 0)

    @property
    def shape(self) -> dict[str, Any]:
        """Of a small ChatGLM2."""
        return {
            "hidden_size": self.hidden,
            "num_layers": self.layers,
            "num_attention_heads": self.hidden // 32,
            "kv_channels": 32,
            "multi_query_group_num": 2,
            "ffn_hidden_size": 688 * self.hidden // 256,
            "seq_length": 4096,
            "padded_vocab_size": self.vocabulary,
            "glmft_family": "glm2",
        }


@dataclass(frozen=True)
class Padding:
    """What the collators and the loop ask of a tokenizer."""

    first_position: int = 0
    size: int = 65_024
    pad_token_id = 0
    family = "glm2"
    vocab_file = ""

    def __len__(self) -> int:
        return self.size

    def positions(self, ids: list[int]) -> list[int]:
        return list(range(self.first_position, self.first_position + len(ids)))


Steps = list[list[list[Example]]]  # optimizer steps of micro-batches of rows


def rows_like(data: Path, words: int, longest: int) -> list[Example]:
    """Rows of random words with the lengths of a file's records (a JSON array or JSON lines), cut to the longest."""
    text, generator, rows = data.read_text(encoding="utf-8"), random.Random(0), []
    records = json.loads(text if text.lstrip().startswith("[") else f"[{','.join(text.splitlines())}]")
    for record in records:
        answer = record.get("output") or record.get("summary") or ""
        asked = sum(len(value) for value in record.values() if isinstance(value, str)) - len(answer)
        supervised = min(int(len(answer) / CHARACTERS) + 1, longest - 10)
        question = min(int(asked / CHARACTERS) + 5, longest - supervised)
        ids = [generator.randrange(1, words) for _ in range(question + supervised)]
        rows.append(Example(ids, ((question, question + supervised),), ""))
    if len(rows) < 2 * WINDOW:
        raise SystemExit(f"{data}: {len(rows)} records are too few for steps of {WINDOW}")
    return rows


def steps_of(case: Case, order: str) -> Steps:
    """`GATE` steps that are the same in every order, and `case.steps` of others.

    The first have short rows, as the slowest arms run them too; the last of them has rows of all lengths, so that these
    are compared as well, and memory has grown when the clock starts. The others stand for an epoch in which records of
    like length meet: all are sorted into windows, of which some are taken, evenly from the shortest to the longest.

    Args:
        order: `grouped`: these windows, shuffled; `file`: their records shuffled, as a file has them; `packed`: their
            records in rows of `LONGEST`.
    """
    generator, size = random.Random(1), case.column.rows
    rows = sorted(rows_like(case.data, case.vocabulary, case.longest), key=lambda row: len(row.ids))
    gate = generator.choices(rows[: len(rows) // 2], k=(GATE - 1) * WINDOW) + generator.choices(rows, k=WINDOW)
    windows = len(rows) // WINDOW
    first = [int((i + 0.5) / case.steps * windows) * WINDOW for i in range(case.steps)]
    measured = [rows[i : i + WINDOW] for i in first]
    generator.shuffle(measured)
    if order == "packed":
        steps = [packed(gate[i : i + WINDOW]) for i in range(0, len(gate), WINDOW)]
        return steps + [[rows] for rows in packed([row for window in measured for row in window])]
    records = [row for window in measured for row in window]
    if order == "file":
        generator.shuffle(records)
    records = gate + records
    return [[records[i + j : i + j + size] for j in range(0, WINDOW, size)] for i in range(0, len(records), WINDOW)]


def packed(rows: list[Example]) -> list[list[Example]]:
    """Micro-batches of one packed row each."""
    return [[join([rows[i] for i in numbers])] for numbers in pack([len(row.ids) for row in rows], LONGEST, seed=0)]


def supervised(step: list[list[Example]]) -> int:
    return sum(row.supervised for rows in step for row in rows)


def settings(case: Case, **more: Any) -> TrainConfig:
    """glmft's settings of a column."""
    accumulation = WINDOW // case.column.rows
    batch = {"per_device_train_batch_size": case.column.rows, "gradient_accumulation_steps": accumulation}
    return TrainConfig(**case.column.flags, **OPTIMIZER, **batch, **{"device": "cpu", "dtype": "fp32", **more})


def our_base(case: Case) -> nn.Module:
    """glmft's ChatGLM2 with random weights, the same in every process."""
    torch.manual_seed(0)
    model = ChatGLM2ForConditionalGeneration._from_config(ChatGLM2Config(**case.shape), attn_implementation="sdpa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02 if "output" in name or "embed" in name else 0.04)
    return model


def as_glm(model: nn.Module) -> GlmForCausalLM:
    """transformers' own GLM with the weights of a ChatGLM2 of ours."""
    glm = GlmForCausalLM._from_config(native_config(model.config, None), attn_implementation="sdpa")
    named = ((*name.rpartition(".")[::2], tensor.detach()) for name, tensor in model.named_parameters())
    pieces = ((piece, kind, tensor) for module, kind, tensor in named for piece in pieces_of(module, model.config))
    glm.load_state_dict({f"{p.name}.{kind}": tensor[p.first : p.end] for p, kind, tensor in pieces})
    return glm


def our_model(case: Case) -> nn.Module:
    """With what trains, by glmft's tuner."""
    model = make_tuner(settings(case)).apply(our_base(case))
    layers = range(case.layers)
    if case.column.flags["train_type"] == "lora":
        inner = model.get_base_model().transformer.encoder.layers
        start_lora([[inner[i].self_attention.query_key_value] for i in layers], "qkv")
        start_lora([[inner[i].self_attention.dense] for i in layers], "o")
        start_lora([[inner[i].mlp.dense_h_to_4h] for i in layers], "up")
        start_lora([[inner[i].mlp.dense_4h_to_h] for i in layers], "down")
    if case.column.flags["train_type"] == "ptuning":
        start(model.transformer.prefix_encoder.embedding.weight, "prefix")
    return model.train()


def their_model(case: Case) -> nn.Module:
    """transformers' GLM with the same weights, and what trains by peft's public means with the same initial values.

    LoRA's A of query, key and value is one parameter, as it is where the three are one matrix: the arms then learn
    the same.
    """
    import peft

    model, flags = as_glm(our_base(case)), case.column.flags
    if flags["train_type"] == "lora":
        config = peft.LoraConfig(r=flags["lora_dim"], lora_alpha=flags["lora_alpha"], target_modules=list(LINEAR))
        model = peft.get_peft_model(model, config)
        inner = model.get_base_model().model.layers
        attention = [inner[i].self_attn for i in range(case.layers)]
        start_lora([[a.q_proj, a.k_proj, a.v_proj] for a in attention], "qkv")
        start_lora([[a.o_proj] for a in attention], "o")
        start_lora([[inner[i].mlp.gate_up_proj] for i in range(case.layers)], "up")
        start_lora([[inner[i].mlp.down_proj] for i in range(case.layers)], "down")
    elif flags["train_type"] == "ptuning":
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=flags["pre_seq_len"])
        model = peft.get_peft_model(model, config)
        start(model.prompt_encoder.default.embedding.weight, "prefix")
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f"layers.{case.layers - 1}." in name)
    return model.train()


def start_lora(layers: list[list[nn.Module]], kind: str) -> None:
    """The initial A of each layer's linear module, or of several that share one; B is zero."""
    for number, modules in enumerate(layers):
        first = modules[0].lora_A.default.weight
        start(first, f"{kind} {number}")
        for module in modules[1:]:
            module.lora_A.default.weight = first


def start(parameter: Tensor, name: str) -> None:
    """Values that follow from a name, whatever else was drawn."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
