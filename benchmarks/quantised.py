"""What a quantised base costs and saves: bytes, memory while loading, time of a step, peak of P-Tuning, F1.

    python -m benchmarks.quantised bytes|loading|step|peak|f1

bytes    of the layers' weights of the official shapes, over those in float16
loading  peak resident memory while a checkpoint of more than 1 GB in float16 is loaded and quantised
step     forward and backward passes of LoRA over INT8, INT4 and NF4 beside fp32 and bf16, turn by turn, on one thread
peak     computed peak of P-Tuning over INT4 for the official shapes, by part, beside the published 6.7 GB
f1       triple F1 of the quickstart's recipe over the embedded base in full precision and in 4 bits, with three seeds
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.load_memory import resident
from examples.official_layout import CONFIGS, NAMES, make_checkpoint, sentencepiece_model
from glmft.dist import end_process
from glmft.models.loading import MODELS, load_config, load_model, meta_model
from glmft.models.nf4 import is_installed
from glmft.models.quantised import bytes_of_integers, numbers_in, quantised_layers
from glmft.models.streaming import empty_model
from glmft.planning.memory import MASTER, MOMENTS

ROOT = Path(__file__).resolve().parents[1]
GB, MIB = 10**9, 2**20
LARGE = {"hidden_size": 2048, "num_layers": 12, "num_attention_heads": 16, "kv_channels": 128, "ffn_hidden_size": 6848}
MIDDLE = {"hidden_size": 1024, "num_layers": 4, "num_attention_heads": 8, "kv_channels": 128, "ffn_hidden_size": 2736}
SHARD = 250
PREFIX = 128
SEEDS = (1, 2, 3)


def official(family: str, **changes: Any) -> Any:
    """The configuration of a family's official folder."""
    keys = {k: v for k, v in CONFIGS[family].items() if k not in ("model_type", "auto_map", "torch_dtype")}
    return MODELS[family][0](**{**keys, "_name_or_path": NAMES[family], **changes})


def vocabulary() -> bytes:
    from examples.quickstart.make_base import CHARACTERS, corpus

    return sentencepiece_model("glm2", corpus(), CHARACTERS)


# ---------------------------------------------------------------------------------------------------------- bytes


def show_bytes() -> None:
    for family in CONFIGS:
        for bits in (8, 4):
            model = meta_model(official(family, quantization_bit=bits))
            numbers = sum(layer.in_features * layer.out_features for _, layer in quantised_layers(model))
            held = sum(layer.weight.nbytes + 2 * layer.out_features for _, layer in quantised_layers(model))
            print(f"{NAMES[family]}, INT{bits}: {held / GB:.3f} GB, {held / (2 * numbers):.4f} of float16")


# -------------------------------------------------------------------------------------------------------- loading


def measure_loading(folder: Path, bits: str) -> dict[str, float]:
    """Of this process, in MiB: its peak over what it held before, and what it has loaded."""
    torch.set_num_threads(1)
    small = folder.parent / "small"
    load_model(load_config(small, quantization_bit=bits), small, torch.float16)  # imports what loading needs
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    model = load_model(load_config(folder, quantization_bit=bits), folder, torch.float16)
    peak = resident("VmHWM") - before
    size = bytes_of_integers(model) + sum(p.nbytes for p in model.parameters())
    return {"peak": peak / MIB, "size": size / MIB, "before": before / MIB}


def show_loading() -> None:
    from examples.official_layout import SMALL

    with tempfile.TemporaryDirectory() as temporary:
        words = vocabulary()
        make_checkpoint(Path(temporary) / "small", "glm2", words, SMALL["glm2"], safetensors=True)
        for name, safetensors in (("safetensors", True), ("bin", False)):
            folder = Path(temporary) / name
            make_checkpoint(folder, "glm2", words, LARGE, max_shard_size=f"{SHARD}MB", safetensors=safetensors)
            size = sum(p.stat().st_size for p in folder.iterdir()) / MIB
            print(f"checkpoint of {size:.0f} MiB in float16, {name}, shards of {SHARD} MB")
            for bits in ("8", "4"):
                command = [sys.executable, "-m", "benchmarks.quantised", "loading", "--folder", str(folder)]
                done = subprocess.run([*command, "--bits", bits], cwd=ROOT, capture_output=True, text=True, check=True)
                seen = json.loads(done.stdout)
                limit = seen["size"] + SHARD * 1e6 / MIB
                print(
                    f"  INT{bits}: {seen['size']:.0f} MiB of weights, peak {seen['peak']:.0f} MiB above the "
                    f"interpreter's {seen['before']:.0f} (weights and a shard: {limit:.0f})"
                )


# ----------------------------------------------------------------------------------------------------------- step


def lora_model(folder: Path, quantisation: str | None, dtype: torch.dtype) -> torch.nn.Module:
    from glmft.tuners.lora import Lora

    model = load_model(load_config(folder, quantization_bit=quantisation), folder, dtype)
    return Lora(8, 32, 0.0, "all-linear").apply(model).train()


def step(model: torch.nn.Module, rows: torch.Tensor, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        loss = model(input_ids=rows, labels=rows).loss
    loss.backward()
    model.zero_grad()


def dequantise_all(model: torch.nn.Module, dtype: torch.dtype) -> None:
    for _, layer in quantised_layers(model):
        layer.dequantised(dtype)


def seconds_of(work: Callable[[], None]) -> float:
    """Of a processor's time, so that what else runs on the machine does not count."""
    began = time.process_time()
    work()
    return time.process_time() - began


def show_step(steps: int, tokens: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_checkpoint(Path(temporary) / "base", "glm2", vocabulary(), MIDDLE, safetensors=True)
        rows = torch.randint(300, 400, (4, tokens // 4), generator=torch.Generator().manual_seed(0))
        kinds = [None, "8", "4", *(["nf4"] if is_installed() else [])]
        models = {(kind, d): lora_model(folder, kind, d) for d in (torch.float32, torch.bfloat16) for kind in kinds}
        works = {key: [lambda m=model, d=key[1]: step(m, rows, d)] for key, model in models.items()}
        for (kind, dtype), model in models.items():
            if kind in ("4", "8"):
                works[kind, dtype].append(lambda m=model, d=dtype: dequantise_all(m, d))
        seconds = {key: [[] for _ in some] for key, some in works.items()}
        for turn in range(steps + 1):  # the first does not count
            for key, some in works.items():
                for taken, work in zip(seconds[key], some, strict=True):
                    taken.extend([seconds_of(work)] if turn else [])
        print(f"{numbers_in(models[None, torch.float32]):,} numbers, {rows.numel()} tokens a step")
        for (kind, dtype), found in seconds.items():
            median, *once = [1000 * statistics.median(taken) for taken in found]
            plain = 1000 * statistics.median(seconds[None, dtype][0])
            name = f"{'floats' if kind is None else kind.upper()}, computed in {str(dtype).removeprefix('torch.')}"
            note = f"; its weights dequantised once {once[0]:.0f} ms, twice in a step" if once else ""
            print(f"{name:>30}: {median:.0f} ms, {median / plain:.2f} of floats{note}")


# ----------------------------------------------------------------------------------------------------------- peak


@dataclass
class Peak:
    """Bytes of P-Tuning over INT4 on one device, stage 2: weights, what trains, and a micro-batch of one row."""

    integers_and_scales: int
    embedding_and_head: int
    norms_and_biases: int
    prefix_with_gradient_and_optimizer: int
    activations: int
    one_layer_again: int
    one_matrix_in_floats: int
    logits: int


def zeros(model: torch.nn.Module) -> torch.nn.Module:
    """The same with zeros in bf16 for every parameter: saves the time of initial values."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(torch.zeros(parameter.shape, dtype=torch.bfloat16))
    model.tie_weights()
    return model


@functools.cache
def saved_bytes(family: str, layers: int, tokens: int) -> int:
    """What the layers keep for the backward pass of one row, counted as autograd saves it, at the official width."""
    from glmft.tuners.prefix import Prefix

    ids = torch.full((1, tokens), 5)
    few = {"vocab_size": 64, "bos_token_id": 7, "gmask_token_id": 8, "mask_token_id": 9, "eos_token_id": 10}
    if family == "glm":
        ids[0, -2:] = torch.tensor([8, 7])
    else:
        few = {"padded_vocab_size": 64}
    config = official(family, quantization_bit=4, **{**few, "num_layers": layers, "num_hidden_layers": layers})
    model = Prefix(PREFIX, False).apply(zeros(empty_model(MODELS[family][1], config, "sdpa"))).train()
    of_model = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in of_model:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model.transformer(ids)
    return sum(sizes.values())


def bytes_of_a_layer(family: str, tokens: int) -> int:
    """The same of one layer, from two short rows: it grows evenly with their length."""
    short, long = 32, 64
    of_short, of_long = (saved_bytes(family, 2, n) - saved_bytes(family, 1, n) for n in (short, long))
    return of_short + (of_long - of_short) * (tokens - short) // (long - short)


def peak(family: str, tokens: int, answer: int, checkpointing: bool) -> Peak:
    config = official(family, quantization_bit=4)
    model = meta_model(config)
    layers, heads, size = config.key_value_shape
    integers = sum(layer.weight.nbytes + 2 * layer.out_features for _, layer in quantised_layers(model))
    large = sum(p.numel() for p in model.parameters() if p.dim() == 2)  # a tied head counts once
    trained = PREFIX * layers * 2 * heads * size
    matrix = max(layer.in_features * layer.out_features for _, layer in quantised_layers(model))
    a_layer = bytes_of_a_layer(family, tokens)
    a_state = tokens * config.hidden_size * 2
    return Peak(
        integers_and_scales=integers,
        embedding_and_head=2 * large,
        norms_and_biases=2 * sum(p.numel() for p in model.parameters() if p.dim() == 1),
        prefix_with_gradient_and_optimizer=trained * (4 + 4 + MOMENTS + MASTER),
        activations=layers * (a_state if checkpointing else a_layer),
        one_layer_again=a_layer if checkpointing else 0,
        one_matrix_in_floats=matrix * (1 + 2),  # unpacked to int8, then in bf16
        logits=answer * config.vocab_size * (2 + 4 + 4),  # in bf16, in fp32, and their gradient
    )


def show_peak(families: list[str]) -> None:
    cases = [(128, 64, False), (1024, 512, False), (1024, 512, True)]
    for family in families:
        found = [peak(family, *case) for case in cases]
        print(f"\n{NAMES[family]}, P-Tuning over INT4, batch 1, prefix {PREFIX}; GB:")
        heads = ["64 + 64", "512 + 512", "512 + 512, checkpointing"]
        print("| part | " + " | ".join(heads) + " |\n|---|" + "---|" * len(heads))
        for part in dataclasses.fields(Peak):
            values = " | ".join(f"{getattr(one, part.name) / GB:.2f}" for one in found)
            print(f"| {part.name.replace('_', ' ')} | {values} |")
        sums = " | ".join(f"{sum(dataclasses.astuple(one)) / GB:.2f}" for one in found)
        print(f"| **sum** | {sums} |")
    print("\npublished for ChatGLM-6B, INT4, batch 1, 64 + 64: 6.7 GB")


# ------------------------------------------------------------------------------------------------------------- F1


def trained_f1(folder: Path, seed: int, quantisation: str | None) -> float:
    """Train the quickstart's LoRA over the embedded base and score it on the shipped test file."""
    from examples.quickstart.run import RECIPES, Test, read

    flags = ["--quantization_bit", quantisation] if quantisation else []
    command = [sys.executable, "train.py", "--train_type", "lora", *RECIPES["lora"], *flags, "--seed", str(seed)]
    command += ["--show_first_record", "False", "--output_dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        raise SystemExit(done.stderr)
    import glmft

    test = Test("seen patterns", read("test.json"))
    model, tokenizer = glmft.load(folder, quantization_bit=quantisation)
    return test.f1(test.ask(model, tokenizer))


def show_f1(kinds: Iterator[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        for kind in kinds:
            quantisation = None if kind == "none" else kind
            scores = [trained_f1(Path(temporary) / f"{kind}-{seed}", seed, quantisation) for seed in SEEDS]
            shown = ", ".join(f"{score:.3f}" for score in scores)
            print(f"{kind:>5}: {shown}; mean {statistics.mean(scores):.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bytes", "loading", "step", "peak", "f1"))
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=512, help="in a step")
    parser.add_argument("--kinds", default="none,4", help="f1: quantisations, comma-separated")
    parser.add_argument("--families", default=",".join(CONFIGS), help="peak: comma-separated")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bits", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from glmft.commands.quiet import quiet

    quiet()
    if args.folder:
        print(json.dumps(measure_loading(args.folder, args.bits)))
        end_process(0)
    shows: dict[str, Callable[[], None]] = {
        "bytes": show_bytes,
        "loading": show_loading,
        "step": lambda: show_step(args.steps, args.tokens),
        "peak": lambda: show_peak(args.families.split(",")),
        "f1": lambda: show_f1(args.kinds.split(",")),
    }
    shows[args.what]()


if __name__ == "__main__":
    main()
