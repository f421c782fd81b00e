"""Model and adapter folders that are damaged, forged or set as traps."""

import json
import random
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import changed, fifo
from .mutations import damaged, mutated_json
from .rule import attempt

BATCH = 10
MODEL_JSON = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "glmft_training.json",
)
ADAPTERS = ("lora", "ptuning", "prompt", "freeze", "peft")


def tries(count: int):
    """Some batches in every run, ten times as many among the slow tests."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(count, 12 * count)]
    return pytest.mark.parametrize("seed", [*range(count), *slow])


def predict(place, model: str) -> list[str]:
    flags = {"model_name_or_path": model, "test_path": "data.json", "max_samples": 1, "max_new_tokens": 1}
    return [
        part
        for name, value in {**flags, "output_dir": "out", "device": "cpu"}.items()
        for part in (f"--{name}", str(value))
    ]


def run_batch(seed: int, place, capsys, damage) -> None:
    """`BATCH` inputs from one seed; all that broke the rule are named together."""
    broken, codes = [], Counter()
    for number in range(BATCH):
        rng = random.Random(1000 * seed + number)
        model, undo = damage(rng)
        result = attempt("predict", predict(place, model), place, capsys)
        codes[result.code] += 1
        if result.broken:
            broken.append((number, result.broken, result.lines[:3]))
        shutil.rmtree(place / "out", ignore_errors=True)
        undo()
    print(codes)
    assert not broken, broken
    assert codes[2]


def restoring(folder, good):
    def undo() -> None:
        shutil.rmtree(folder)
        shutil.copytree(good / folder.name, folder)

    return undo


@tries(5)
def test_a_model_folder_with_damaged_json(seed, good, place, capsys):
    def damage(rng):
        name = rng.choice(MODEL_JSON)
        path = place / "base" / name
        changed(path, mutated_json(json.loads((good / "base" / name).read_text(encoding="utf-8")), rng))
        return "base", restoring(place / "base", good)

    run_batch(seed, place, capsys, damage)


@tries(2)
def test_a_model_folder_with_damaged_files(seed, good, place, capsys):
    def damage(rng):
        path = (
            place / "base" / rng.choice(["model.safetensors", "tokenizer.model", "pytorch_model.bin", "tokenizer.json"])
        )
        kind = rng.choice(["bytes", "bytes", "fifo", "folder", "link", "gone"])
        original = path.read_bytes() if path.exists() else b"PK\x03\x04" + rng.randbytes(200)
        path.unlink(missing_ok=True)
        if path.name == "pytorch_model.bin":
            (place / "base" / "model.safetensors").unlink()
        if kind == "bytes":
            changed(path, damaged(original, rng))
        elif kind == "fifo":
            fifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(path.name)
        return "base", restoring(place / "base", good)

    run_batch(seed, place, capsys, damage)


def strange_tensors(tensors: dict, rng: random.Random) -> dict:
    """Tensors of which one is missing, too many, renamed, of another shape or number format, or not finite."""
    names = sorted(tensors)
    name, other = rng.choice(names), rng.choice(names)
    tensor = tensors[name]
    kinds = {
        "missing": lambda: {n: t for n, t in tensors.items() if n != name},
        "extra": lambda: {
            **tensors,
            rng.choice(["evil", "base_model.model.lm_head.weight", name + "x"]): tensor.clone(),
        },
        "renamed": lambda: {(n + ".evil" if n == name else n): t for n, t in tensors.items()},
        "swapped": lambda: {**tensors, name: tensors[other].clone(), other: tensor.clone()},
        "shape": lambda: {**tensors, name: torch.zeros(*tensor.shape, 2)},
        "flat": lambda: {**tensors, name: tensor.flatten().clone()},
        "format": lambda: {
            **tensors,
            name: tensor.to(rng.choice([torch.int64, torch.bool, torch.uint8, torch.int8, torch.complex64])),
        },
        "nan": lambda: {**tensors, name: torch.full_like(tensor, rng.choice([float("nan"), float("inf")]))},
        "one nan": lambda: {
            **tensors,
            name: tensor.flatten().index_fill(0, torch.tensor([0]), float("nan")).reshape(tensor.shape),
        },
        "empty": lambda: {},
        "scalar": lambda: {**tensors, name: torch.tensor(1.0)},
    }
    return kinds[rng.choice(sorted(kinds))]()


@tries(2)
def test_base_weights_that_are_not_the_models(seed, good, place, capsys):
    tensors = load_file(good / "base" / "model.safetensors")

    def damage(rng):
        strange = strange_tensors(tensors, rng)
        if rng.random() < 0.5:
            save_file(strange, place / "base" / "model.safetensors", {"format": "pt"})
        else:
            (place / "base" / "model.safetensors").unlink()
            torch.save(strange, place / "base" / "pytorch_model.bin")
        return "base", restoring(place / "base", good)

    run_batch(seed, place, capsys, damage)


@tries(3)
def test_adapter_weights_that_are_not_the_tuners(seed, good, place, capsys):
    def damage(rng):
        adapter = rng.choice(ADAPTERS)
        path = next((place / adapter).glob("*.safetensors"))
        save_file(strange_tensors(load_file(good / adapter / path.name), rng), path, {"format": "pt"})
        return adapter, restoring(place / adapter, good)

    run_batch(seed, place, capsys, damage)


@tries(5)
def test_an_adapter_with_a_forged_description(seed, good, place, capsys):
    def damage(rng):
        adapter = rng.choice(ADAPTERS)
        path = place / adapter / ("adapter_config.json" if adapter == "peft" else "glmft_adapter.json")
        if adapter == "lora" and rng.random() < 0.5:
            path = path.with_name("adapter_config.json")
        changed(path, mutated_json(json.loads(path.read_text(encoding="utf-8")), rng))
        return adapter, restoring(place / adapter, good)

    run_batch(seed, place, capsys, damage)


TRAPS = {
    "code from megatron": {"megatron_config": {"x": 1}, "megatron_core": "canary"},
    "code from a library": {"auto_mapping": {"parent_library": "canary", "base_model_class": "run"}},
    "another kind": {"peft_type": "PROMPT_TUNING"},
    "a regex without end": {"target_modules": "(.*)*(.*)*!"},
    "a regex of many stars": {"target_modules": ".*" * 40 + "!"},
    "a pattern without end": {"rank_pattern": {"((a+)+)+$": 4}},
    "a start without end": {"init_lora_weights": "pissa_niter_99999999"},
    "a start from elsewhere": {"init_lora_weights": "eva"},
    "another base": {"base_model_name_or_path": "x" * 5000},
    "layers copied": {"layer_replication": [[0, 4], [2, 4]]},
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("command", ["predict", "merge"])
def test_what_peft_would_believe(trap, command, place, capsys):
    path = place / "peft" / "adapter_config.json"
    changed(path, json.dumps({**json.loads(path.read_text(encoding="utf-8")), **TRAPS[trap]}))
    argv = predict(place, "peft") if command == "predict" else ["--model_dir", "peft", "--output_dir", "out"]
    harmless = trap == "code from a library"  # it is of no effect
    result = attempt(command, argv, place, capsys, harmless)
    assert not result.broken, (result.broken, result.lines)


INDEX = {
    "outside": "../../outside.safetensors",
    "absolute": "/etc/passwd",
    "a number": 7,
    "a list": ["model.safetensors"],
    "empty": "",
    "long": "x" * 5000 + ".safetensors",
    "a NUL": "a\0.safetensors",
    "a folder": ".",
}


@pytest.mark.parametrize("entry", INDEX)
def test_an_index_that_leads_elsewhere(entry, place, capsys):
    shutil.move(place / "base" / "model.safetensors", place / "outside.safetensors")
    shutil.copy(place / "outside.safetensors", place.parent / "outside.safetensors")
    changed(place / "base" / "model.safetensors.index.json", json.dumps({"weight_map": {"a": INDEX[entry]}}))
    result = attempt("predict", predict(place, "base"), place, capsys, harmless=False)
    assert not result.broken, (result.broken, result.lines)


SIZES = {
    "layers": {"num_layers": 10**9},
    "many layers": {"num_layers": 9999},
    "width": {"hidden_size": 1 << 20},
    "heads": {"num_attention_heads": 10**18},
    "groups": {"multi_query_group_num": 0},
    "vocabulary": {"padded_vocab_size": 1 << 24},
    "prefix": {"pre_seq_len": 10**9},
    "feed forward": {"ffn_hidden_size": 10**6},
    "a format": {"torch_dtype": "evil"},
    "an attention": {"attn_implementation": "evil/kernel"},
}


@pytest.mark.parametrize("size", SIZES)
def test_absurd_sizes_are_refused_before_anything_is_built(size, place, capsys):
    path = place / "base" / "config.json"
    changed(path, json.dumps({**json.loads(path.read_text(encoding="utf-8")), **SIZES[size]}))
    result = attempt("predict", predict(place, "base"), place, capsys, harmless=False)
    assert not result.broken, (result.broken, result.lines)


def test_an_adapter_inside_a_models_folder_is_not_believed(place, capsys):
    shutil.copy(place / "peft" / "adapter_config.json", place / "base" / "adapter_config.json")
    result = attempt("predict", predict(place, "base"), place, capsys, harmless=False)
    assert not result.broken, (result.broken, result.lines)


class Evil:
    def __reduce__(self):
        return __import__, ("canary",)


@pytest.mark.parametrize("content", [Evil(), {"a": Evil()}, [1, 2], {1: torch.ones(1)}, {"a": "b"}, torch.ones(3)])
def test_a_pickle_of_other_things_is_refused_without_advice_to_trust_it(content, place, capsys):
    (place / "base" / "model.safetensors").unlink()
    torch.save(content, place / "base" / "pytorch_model.bin")
    result = attempt("predict", predict(place, "base"), place, capsys, harmless=False)
    assert not result.broken, (result.broken, result.lines)
    assert "weights_only" not in " ".join(result.lines)
