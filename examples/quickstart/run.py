"""The main job, end to end on the embedded tiny model: ask, fine-tune, ask again; beside it, what a regex gets.

    python examples/quickstart/run.py [--train_type lora|ptuning] [--seed 1234]

The training is the command line that it prints; the rest is `glmft` as a notebook would use it.
"""

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # this file also runs as a script

import glmft  # noqa: E402
from examples.quickstart import template_regex  # noqa: E402

RECIPES = {
    "lora": [
        *("--lora_dim", "16", "--lora_alpha", "32", "--lora_dropout", "0"),
        *("--lora_module_name", "query_key_value,dense,dense_h_to_4h,dense_4h_to_h"),
        *("--learning_rate", "3e-3", "--max_steps", "300"),
    ],
    "ptuning": [
        *("--pre_seq_len", "64", "--prefix_projection", "False"),
        *("--learning_rate", "1e-1", "--weight_decay", "0", "--max_steps", "800"),
    ],
}
SHOWN = 3
TESTS = {"seen patterns": "test.json", "new patterns": "test_new_patterns.json", "old task": "test_old_task.json"}


def train(train_type: str, seed: int, folder: Path) -> None:
    """Fine-tune with the `deepspeed` launcher, as a user would type it."""
    launcher = Path(sys.executable).parent / "deepspeed"
    command = [str(launcher), "--master_port", str(free_port()), str(ROOT / "train.py"), "--train_type", train_type]
    command += [*RECIPES[train_type], "--seed", str(seed), "--show_loss_step", "25"]
    command += ["--show_first_record", "False"]
    command += ["--output_dir", str(folder), "--overwrite_output_dir"]
    print(f"\n$ {shlex.join(command)}\n", flush=True)
    path = os.pathsep.join([str(launcher.parent), os.environ.get("PATH", "")])
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PATH": path})


def free_port() -> int:
    """A port for this run, so that several can run beside one another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Test:
    """A shipped file of questions that no training file has."""

    title: str
    records: list[dict[str, str]]

    @property
    def labels(self) -> list[str]:
        return [record["output"] for record in self.records]

    def f1(self, answers: list[str]) -> float:
        return glmft.triple_f1(answers, self.labels)["f1"]

    def ask(self, model: Any, tokenizer: Any) -> list[str]:
        questions = [record["instruction"] + record["input"] for record in self.records]
        return glmft.answer(model, tokenizer, questions, batch_size=64, max_new_tokens=48)


def read(name: str) -> list[dict[str, str]]:
    """The records of a shipped file."""
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_type", choices=sorted(RECIPES), default="lora")
    parser.add_argument("--seed", type=int, default=1234)
    args = parser.parse_args()

    glmft.quiet()
    tests = [Test(title, read(name)) for title, name in TESTS.items()]
    _, new, _ = tests
    model, tokenizer = glmft.load()
    before = {test.title: test.ask(model, tokenizer) for test in tests}
    expressions = template_regex.learn(read("train.json"))

    folder = ROOT / "output" / f"quickstart-{args.train_type}"
    train(args.train_type, args.seed, folder)
    trained = glmft.merge(glmft.MergeConfig(model_dir=str(folder))) if args.train_type == "lora" else folder
    model, tokenizer = glmft.load(trained)
    after = {test.title: test.ask(model, tokenizer) for test in tests}

    for record, old, answered in list(zip(new.records, before[new.title], after[new.title], strict=True))[:SHOWN]:
        print(f"\nInput:         {record['instruction']}{record['input']}\nLabel:         {shown(record['output'])}")
        print(f"Output before: {shown(old)}\nOutput after:  {shown(answered)}")
    print(f"\n{'merged model' if trained != folder else 'adapter'} in {trained}\n")

    regex = [[template_regex.answer(expressions, record["input"]) for record in test.records] for test in tests]
    rows = {
        "base model": [test.f1(before[test.title]) for test in tests],
        "regex read off train.json": [test.f1(answers) for test, answers in zip(tests, regex, strict=True)],
        f"fine-tuned ({args.train_type})": [test.f1(after[test.title]) for test in tests],
    }
    print(f"{'triple F1':26}" + "".join(f"{test.title:>16}" for test in tests))
    for name, scores in rows.items():
        print(f"{name:26}" + "".join(f"{score:16.3f}" for score in scores))
    print(f"\ntriple F1 before {new.f1(before[new.title]):.3f} after {new.f1(after[new.title]):.3f}")


def shown(text: str) -> str:
    return text.replace("\n", " | ")


if __name__ == "__main__":
    main()
