"""Flags at their edges, files of settings, and launch environments."""

import dataclasses
import json
import random
import shutil
from collections import Counter

import pytest

from glmft.settings.config import TrainConfig

from .conftest import as_yaml, changed, fifo
from .mutations import TEXTS, VALUES, mutated_json, nested
from .rule import attempt
from .test_folders import BATCH, tries

GOOD = {
    "train_path": "data.json",
    "model_name_or_path": "base",
    "output_dir": "out",
    "device": "cpu",
    "max_len": "64",
    "max_src_len": "32",
}
NUMBERS = [
    "-1",
    "0",
    "1e20",
    str(10**20),
    str(2**63),
    "9" * 400,
    "nan",
    "inf",
    "-inf",
    "1e-320",
    "",
    "1_0",
    "٣",
    "0x10",
    "1.5",
    "True",
]
PATHS = [
    "",
    ".",
    "/",
    "x" * 300,
    "x/" * 3000,
    "a\udcff",
    "..",
    "nowhere",
    "data.json/x",
    "*",
    "data.json:1e308,data.json:1e308",
    "data.json:nan",
    "~",
    "/dev/null",
    "[",
    "data.json:0",
]
WORDS = [*TEXTS, "pissa_niter_99999999", "pissa_niter_", "{0}", "0GB", "-1MB", "1e9GB", ",,,", "yes", "²"]


def run_batch(seed: int, place, capsys, one) -> None:
    broken, codes = [], Counter()
    for number in range(BATCH):
        rng = random.Random(1000 * seed + number)
        command, argv = one(rng)
        result = attempt(command, argv, place, capsys)
        codes[result.code] += 1
        if result.broken:
            broken.append((argv, result.broken, result.lines[:3]))
        shutil.rmtree(place / "out", ignore_errors=True)
    print(codes)
    assert not broken, broken
    assert codes[2]


def flags(values: dict) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", value)]


@tries(6)
@pytest.mark.usefixtures("no_training")
def test_every_flag_of_training_at_its_edges(seed, place, capsys):
    fields = [
        f for f in dataclasses.fields(TrainConfig) if "help" in f.metadata and f.name not in ("config", "data_dir")
    ]

    def one(rng):
        given = dict(GOOD)
        for f in rng.sample(fields, rng.choice([1, 1, 2])):
            pool = (
                [*NUMBERS, *PATHS] if f.name.endswith(("_path", "_dir", "_file", "_checkpoint")) else [*NUMBERS, *WORDS]
            )
            given[f.name] = rng.choice(pool)
        given = {name: value.replace("\0", "") for name, value in given.items()}  # no argument can hold one
        if given["output_dir"] in ("", ".", "..", "/", "~", "*", "["):
            given["output_dir"] = "out"
        return "train", flags(given)

    run_batch(seed, place, capsys, one)


@tries(1)
def test_the_flags_of_the_other_commands(seed, place, capsys):
    (place / "answers.txt").write_text('{"labels": "a", "predict": "b"}\n')

    def one(rng):
        odd = lambda pool: rng.choice(pool).replace("\0", "")  # noqa: E731
        commands = {
            "predict": {
                "model_name_or_path": "base",
                "test_path": "data.json",
                "output_dir": "out",
                "max_samples": "1",
                "device": "cpu",
                "max_new_tokens": "1",
            },
            "inspect": {"data_path": "data.json", "model": "base", "records": "0"},
            "score": {"predictions": "answers.txt"},
            "merge": {"model_dir": "lora", "output_dir": "out"},
            "quantize": {"model_name_or_path": "base", "output_dir": "out"},
        }
        more = {
            "predict": [
                "max_new_tokens",
                "per_device_eval_batch_size",
                "max_samples",
                "max_len",
                "max_src_len",
                "dtype",
                "device",
                "mode",
                "ptuning_checkpoint",
                "attn_implementation",
                "base_model_path",
                "template",
                "num_beams",
                "temperature",
                "top_p",
                "top_k",
                "repetition_penalty",
                "max_tokens_per_batch",
                "prompt",
                "do_sample",
                "resume",
            ],
            "score": ["predictions", "output_file", "make_sheet", "sum_sheet", "sheet_records", "test_path"],
            "inspect": [
                "records",
                "num_proc",
                "max_len",
                "max_source_length",
                "mode",
                "color",
                "prompt_column",
                "data_format",
            ],
            "merge": ["max_shard_size", "ori_model_dir", "model_dir", "mode"],
            "quantize": ["bits", "max_shard_size", "model_name_or_path", "mode"],
        }
        command = rng.choice(sorted(commands))
        name = rng.choice(more[command])
        huge = ["max_new_tokens"]  # a number within reason would be obeyed
        pool = [n for n in [*NUMBERS, *WORDS, *PATHS] if not (name in huge and n in ("1_0", "٣"))]
        return command, flags({**commands[command], name: odd(pool)})

    run_batch(seed, place, capsys, one)


YAML = {
    "max_len": 64,
    "learning_rate": 1e-3,
    "train_path": "data.json",
    "training_args": {"max_steps": 2, "generation_config": {"max_new_tokens": 4}},
    "peft_config": {"peft_type": "LORA", "r": 4, "target_modules": ["query_key_value"]},
}
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
)
TRAPS = [
    "!!python/object/apply:canary.run []",
    "x: !!python/name:canary.run",
    BOMB,
    "max_len: " + nested(100_000),
    "? [a, b]\n: c",
    "max_len: 1\nmax_len: 2",
    "max_len: " + "1" * 5000,
    "<<: {max_len: 64}",
    "\x00",
    "a" * 100_000,
    "- 1",
    "max_len: 2020-01-01",
    "\n".join(f"key_{i}: 1" for i in range(3000)),
]


@tries(2)
@pytest.mark.usefixtures("no_training")
def test_a_yaml_file(seed, place, capsys):
    def one(rng):
        kind = rng.choice(["json", "json", "trap", "fifo", "values"])
        path = place / "settings.yaml"
        if kind == "fifo":
            fifo(path)
        elif kind == "trap":
            changed(path, rng.choice(TRAPS))
        elif kind == "values":
            key = rng.choice(["lora_dim", "learning_rate", "seed", "train_path", "max_steps", "report_to", "resume"])
            changed(path, as_yaml({**YAML, key: rng.choice(VALUES)}))
        else:
            changed(path, mutated_json(YAML, rng))
        return "train", [*flags(GOOD), "--config", "settings.yaml"]

    run_batch(seed, place, capsys, one)


DEEPSPEED = {
    "train_batch_size": 32,
    "zero_optimization": {
        "stage": 2,
        "reduce_bucket_size": 1000,
        "overlap_comm": True,
        "offload_optimizer": {"device": "cpu"},
    },
    "fp16": {"enabled": False, "loss_scale": 0},
    "bf16": {"enabled": False},
    "activation_checkpointing": {"profile": False},
    "flops_profiler": {"enabled": False},
    "comms_logger": {"enabled": False},
    "gradient_clipping": 1.0,
    "steps_per_print": 10,
}


@tries(3)
@pytest.mark.usefixtures("no_training")
def test_a_deepspeed_file(seed, place, capsys):
    def one(rng):
        changed(place / "ds.json", mutated_json(DEEPSPEED, rng))
        return "train", [*flags(GOOD), "--ds_file", "ds.json"]

    run_batch(seed, place, capsys, one)


ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}


@pytest.mark.parametrize("name", ENVIRONMENT)
@pytest.mark.parametrize(
    "value", [None, "", "x", "-1", "99999", str(2**63), "1.5", "\u0663", "a b", "no.such.host.invalid"]
)
def test_a_launch_that_makes_no_sense(name, value, place, capsys, monkeypatch):
    for key, given in {**ENVIRONMENT, name: value}.items():
        monkeypatch.delenv(key, raising=False)
        if given is not None:
            monkeypatch.setenv(key, given)
    from glmft import dist

    monkeypatch.setattr(dist.socket, "getaddrinfo", known_hosts(dist.socket.getaddrinfo))
    problems = dist.launch_problems() or [problem for problem in [launch_port(dist)] if problem]
    fine = {"RANK": [None], "LOCAL_RANK": [None, "99999"], "WORLD_SIZE": ["99999"], "MASTER_ADDR": ["99999", "1.5"]}
    assert bool(problems) != (value in fine.get(name, [])), (name, value, problems)


def launch_port(dist) -> str | None:
    import os

    return dist.port_problem() if "RANK" in os.environ else None


def known_hosts(ask):
    """Names are not asked for in the network."""

    def known(host, *rest):
        if not host[:1].isdigit() or " " in host:
            raise OSError("no such host")
        return ask(host, *rest)

    return known


def test_a_port_that_is_taken(monkeypatch):
    from glmft import dist

    with dist.socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        for key, value in {**ENVIRONMENT, "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(key, value)
        assert "cannot be listened at" in dist.port_problem()


def test_a_port_for_administrators_only(monkeypatch):
    from glmft import dist

    class Refusing(dist.socket.socket):
        def bind(self, address):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(dist.socket, "socket", Refusing)
    for key, value in {**ENVIRONMENT, "MASTER_PORT": "520"}.items():
        monkeypatch.setenv(key, value)
    assert "--master_port 29500" in dist.port_problem()


def test_a_deepspeed_file_is_checked_for_what_it_says_of_other_number_formats(place, capsys, no_training):
    changed(
        place / "ds.json", json.dumps({"zero_optimization": {"stage": 2}, "fp16": {"enabled": True, "loss_scal": 0}})
    )
    result = attempt("train", [*flags(GOOD), "--ds_file", "ds.json"], place, capsys, harmless=False)
    assert not result.broken
    assert "loss_scal" in result.lines[0]
