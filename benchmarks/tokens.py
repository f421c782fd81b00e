"""CPU time per real token and peak memory of training steps, beside transformers' own GLM with peft.

    python -m benchmarks.tokens [--columns lora,lora-small,lora-1x8,ptuning,freeze] [--data FILE] [--steps 3] [--memory]

The shape is a small ChatGLM2 (hidden 256, 4 layers) with random weights; records have the lengths and the supervised
tokens of a data file, and random words. All arms run the same records in one process on one thread and take turns at
every step; time is the process clock's. The losses of the first step have to agree before anything is measured.

- `expert`: transformers' `GlmForCausalLM` with converted weights and peft, SDPA, like lengths together, padded,
  logits at supervised positions only: the best that can be set up by hand.
- `padded`: glmft on the same padded batches.
- `one row`: glmft as it trains, without padding.
- `kept`, where lower layers are frozen: the same from the second epoch on with `--cache_frozen_activations`. What comes
  into the lowest trained layer is on disk before the clock starts; reading it counts.

`--memory` runs each arm in a process of its own: the most memory over that with the model loaded.
"""

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from glmft.data.collate import collate, one_row
from glmft.data.encode import Example
from glmft.device import peak_memory
from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
from glmft.models.configuration import ChatGLM2Config
from glmft.settings.config import TrainConfig
from glmft.tuners import make_tuner

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {
    "hidden_size": 256,
    "num_layers": 4,
    "num_attention_heads": 8,
    "kv_channels": 32,
    "multi_query_group_num": 2,
    "ffn_hidden_size": 688,
    "seq_length": 4096,
    "glmft_family": "glm2",
}
LORA = {"train_type": "lora", "lora_module_name": "all-linear", "lora_dim": 16, "lora_dropout": 0.0}
PREFIX = {"train_type": "ptuning", "pre_seq_len": 16, "prefix_projection": False, "prefix_dropout": 0.0}
RATE, LAYERS = 1e-3, SHAPE["num_layers"]


@dataclass
class Column:
    """What is trained, the vocabulary, and rows in a micro-batch of a step of eight."""

    flags: dict[str, Any]
    words: int = 65_024
    rows: int = 8


COLUMNS = {
    "lora": Column(LORA),
    "lora-small": Column(LORA, words=2_048),
    "lora-1x8": Column(LORA, rows=1),
    "ptuning": Column(PREFIX),
    "freeze": Column({"train_type": "freeze", "freeze_last_n": 1}),
}
ARMS = ("expert", "padded", "one row", "kept")


def arms_of(column: Column) -> list[str]:
    """Those that the column can have."""
    return [arm for arm in ARMS if arm != "kept" or column.flags["train_type"] == "freeze"]


class Padding:
    """What the collators ask of a tokenizer."""

    pad_token_id, family = 0, "glm2"

    def positions(self, ids: list[int]) -> list[int]:
        return list(range(len(ids)))


def records(path: Path, words: int, count: int, longest: int) -> list[Example]:
    """Rows of the lengths of a file's records: a token for every 1.6 characters, as the official vocabulary has it."""
    texts = json.loads(f"[{','.join(path.read_text(encoding='utf-8').splitlines())}]")
    generator, rows = random.Random(0), []
    for record in texts[: 4 * count]:
        question = int(len(record["instruction"] + record["input"]) / 1.6) + 5
        answer = min(int(len(record["output"]) / 1.6) + 1, longest - 10)
        question = min(question, longest - answer)
        ids = [generator.randrange(1, words) for _ in range(question + answer)]
        rows.append(Example(ids, ((question, question + answer),), ""))
    generator.shuffle(rows)
    return sorted(rows[:count], key=lambda row: len(row.ids))


def ours(column: Column) -> nn.Module:
    torch.manual_seed(0)
    config = ChatGLM2Config(**SHAPE, padded_vocab_size=column.words)
    model = ChatGLM2ForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02 if "output" in name or "embed" in name else 0.04)
    return model


def theirs(model: nn.Module) -> nn.Module:
    """transformers' GLM with the weights of ours."""
    sys.path.insert(0, str(ROOT / "tests" / "models"))
    from test_chatglm2 import as_glm

    other = as_glm(model)
    other.set_attn_implementation("sdpa")
    return other


def adapted(model: nn.Module, flags: dict[str, Any], is_ours: bool) -> nn.Module:
    """With what trains: by glmft's tuner, or by peft's public means."""
    if is_ours:
        return make_tuner(TrainConfig(**flags)).apply(model)
    import peft

    if flags["train_type"] == "lora":
        linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
        return peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=30, target_modules=linear))
    if flags["train_type"] == "ptuning":
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=flags["pre_seq_len"])
        return peft.get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f"layers.{SHAPE['num_layers'] - 1}." in name)
    return model


class Arm:
    """One way to make a step of some records."""

    def __init__(self, name: str, column: Column):
        self.name, self.column = name, column
        model = ours(column)
        self.model = adapted(model if name != "expert" else theirs(model), column.flags, name != "expert").train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, RATE)
        self.states: dict[int, torch.Tensor] = {}

    def keep(self, rows: list[Example], folder: Path) -> None:
        """Write what comes into the last layer, and map it into memory."""
        for row in rows if self.name == "kept" else []:
            batch, file = one_row([row], Padding()), folder / f"{len(self.states)}.states"
            given = {name: batch[name] for name in ("input_ids", "position_ids", "documents")}
            with torch.no_grad():
                states = self.model.transformer(**given, use_cache=False, layers=range(LAYERS - 1)).last_hidden_state
            file.write_bytes(states.numpy().tobytes())
            mapped = torch.from_file(str(file), size=states.numel(), dtype=states.dtype)
            self.states[id(row)] = mapped.view_as(states)

    def loss(self, rows: list[Example]) -> torch.Tensor:
        """Summed over the supervised tokens."""
        if self.name == "one row":
            return self.model(**one_row(rows, Padding()), num_items_in_batch=1, return_logits=False).loss
        if self.name == "kept":
            batch = one_row(rows, Padding())
            del batch["input_ids"]
            batch |= {"inputs_embeds": torch.cat([self.states[id(row)] for row in rows], dim=1)}
            batch |= {"layers": range(LAYERS - 1, LAYERS)}
            return self.model(**batch, num_items_in_batch=1, return_logits=False).loss
        batch = collate(rows, Padding())
        if self.name == "padded":
            return self.model(**batch, num_items_in_batch=1, return_logits=False).loss
        if (
            self.column.flags["train_type"] == "ptuning"
        ):  # peft wraps the whole model: logits where labels are, by index
            keep = torch.arange(batch["input_ids"].shape[1])
            keep = keep[(batch["labels"][:, 1:] != -100).any(0).nonzero().squeeze(1)]
            logits = self.model(input_ids=batch["input_ids"], logits_to_keep=keep, use_cache=False).logits
            return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, keep + 1].flatten(), reduction="sum")
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        hidden = base.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        chosen = hidden.flatten(0, 1)[batch["loss_positions"]]
        targets = batch["labels"].flatten()[batch["loss_positions"] + 1]
        return F.cross_entropy(base.lm_head(chosen).float(), targets, reduction="sum")

    def step(self, rows: list[Example]) -> float:
        """One optimizer step; its mean loss."""
        supervised = sum(row.supervised for row in rows)
        total = 0.0
        for first in range(0, len(rows), self.column.rows):
            loss = self.loss(rows[first : first + self.column.rows]) / supervised
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


def windows(path: Path, column: Column, steps: int) -> list[list[Example]]:
    """Steps of eight records of like length, in random order; one more that warms up."""
    rows = records(path, column.words, 8 * (steps + 1), 1_560)
    steps_of = [rows[i : i + 8] for i in range(0, len(rows), 8)]
    random.Random(1).shuffle(steps_of)
    return steps_of


def measure(path: Path, name: str, steps: int) -> dict[str, float]:
    """Milliseconds of CPU for a real token, by arm. Raises SystemExit if the arms compute different things."""
    column = COLUMNS[name]
    first, *rest = windows(path, column, steps)
    arms = [Arm(arm, column) for arm in arms_of(column)]
    with tempfile.TemporaryDirectory() as folder:
        for arm in arms:
            arm.keep([row for rows in (first, *rest) for row in rows], Path(folder))
    losses = {arm.name: arm.step(first) for arm in arms}
    alike = [loss for arm, loss in losses.items() if arm != "expert" or column.flags["train_type"] != "ptuning"]
    if max(alike) - min(alike) > 3e-6 * max(alike):
        raise SystemExit(f"{name}: the first losses differ: {losses}")
    seconds = dict.fromkeys(losses, 0.0)
    for rows in rest:
        for arm in random.sample(arms, len(arms)):
            began = time.process_time()
            arm.step(rows)
            seconds[arm.name] += time.process_time() - began
    tokens = sum(len(row.ids) for rows in rest for row in rows)
    return {arm: 1000 * total / tokens for arm, total in seconds.items()}


def memory(path: Path, name: str, arm: str, steps: int) -> float:
    """MiB over the loaded model, for the same steps."""
    column = COLUMNS[name]
    rows = windows(path, column, steps)
    running = Arm(arm, column)
    with tempfile.TemporaryDirectory() as folder:
        running.keep([row for window in rows for row in window], Path(folder))
    gc.collect()
    status = Path("/proc/self/status").read_text()
    loaded = 1024 * int(status.split("VmRSS:")[1].split()[0])
    for window in rows:
        running.step(window)
    return (peak_memory(torch.device("cpu")) - loaded) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", default=",".join(COLUMNS))
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "adgen" / "train.json")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--arm", choices=ARMS, help="the memory of one arm, in this process")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.columns.split(","):
        if args.arm:
            print(round(memory(args.data, name, args.arm, args.steps)))
        elif args.memory:
            again = [sys.executable, "-m", "benchmarks.tokens", "--columns", name, "--steps", str(args.steps)]
            again += ["--data", str(args.data), "--arm"]
            peaks = {
                arm: subprocess.check_output([*again, arm], text=True).split()[-1] for arm in arms_of(COLUMNS[name])
            }
            print(f"{name:>12}: " + ", ".join(f"{arm} {mib} MiB" for arm, mib in peaks.items()), flush=True)
        else:
            found = measure(args.data, name, args.steps)
            of_expert = ", ".join(f"{arm} {ms:.3f} ({found['expert'] / ms:.2f}x)" for arm, ms in found.items())
            print(f"{name:>12}: ms of CPU a token: {of_expert}", flush=True)


if __name__ == "__main__":
    main()
