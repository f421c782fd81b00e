"""The main job, end to end on the embedded tiny model: ask, fine-tune, ask again.

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
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECIPES = {
    "lora": [
        *("--lora_dim", "16", "--lora_alpha", "32", "--lora_dropout", "0"),
        *("--lora_module_name", "query_key_value,dense,dense_h_to_4h,dense_4h_to_h"),
        *("--learning_rate", "3e-3", "--max_steps", "600"),
    ],
    "ptuning": [
        *("--pre_seq_len", "64", "--prefix_projection", "False"),
        *("--learning_rate", "1e-1", "--weight_decay", "0", "--max_steps", "800"),
    ],
}
SHOWN = 3


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


def read(name: str) -> tuple[list[str], list[str]]:
    """Questions and labels of a shipped file."""
    rows = [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
    return [row["instruction"] + row["input"] for row in rows], [row["output"] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_type", choices=sorted(RECIPES), default="lora")
    parser.add_argument("--seed", type=int, default=1234)
    args = parser.parse_args()

    import glmft

    glmft.quiet()
    questions, labels = read("test.json")
    new_questions, new_labels = read("test_new_patterns.json")
    model, tokenizer = glmft.load()
    before = glmft.answer(model, tokenizer, questions, batch_size=64, max_new_tokens=48)

    folder = ROOT / "output" / f"quickstart-{args.train_type}"
    train(args.train_type, args.seed, folder)
    trained = glmft.merge(glmft.MergeConfig(model_dir=str(folder))) if args.train_type == "lora" else folder
    model, tokenizer = glmft.load(trained)
    after = glmft.answer(model, tokenizer, questions, batch_size=64, max_new_tokens=48)
    new = glmft.answer(model, tokenizer, new_questions, batch_size=64, max_new_tokens=48)

    for question, label, old, answered in list(zip(questions, labels, before, after, strict=True))[:SHOWN]:
        print(f"\nInput:         {question}\nLabel:         {shown(label)}")
        print(f"Output before: {shown(old)}\nOutput after:  {shown(answered)}")
    print(f"\n{'merged model' if trained != folder else 'adapter'} in {trained}")
    scores = [glmft.triple_f1(*pair)["f1"] for pair in ((before, labels), (after, labels), (new, new_labels))]
    print(f"triple F1 on sentence patterns never trained: {scores[2]:.3f}")
    print(f"triple F1 before {scores[0]:.3f} after {scores[1]:.3f}")


def shown(text: str) -> str:
    return text.replace("\n", " | ")


if __name__ == "__main__":
    main()
