"""The command line: `glmft COMMAND`, and train.py, predict.py, merge_lora.py, which call it.

The docstring of a command is its line in `glmft --help`.
"""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from glmft import __version__
from glmft.console import hold_standard_files, lasting_output
from glmft.dist import alike_on_all_ranks, end_process, env_rank, is_main, parting
from glmft.errors import GlmftError, Stopped, Unforeseen, of_the_system, shown
from glmft.settings.answers import PredictConfig, ScoreConfig
from glmft.settings.compare import CompareConfig
from glmft.settings.config import TrainConfig
from glmft.settings.flags import Settings, parse_arguments, split_flags
from glmft.settings.plan import PlanConfig
from glmft.settings.talk import ChatConfig, ServeConfig
from glmft.settings.tools import ExportConfig, InspectConfig, MergeConfig, QuantizeConfig
from glmft.settings.web import WebConfig
from glmft.settings.yaml_file import demo_arguments
from glmft.training.signals import interruptible, stopped_line


def train(argv: Sequence[str], program: str) -> int:
    """fine-tune a model           (deepspeed train.py, torchrun train.py, python train.py)"""
    with alike_on_all_ranks():
        config = parse_arguments(TrainConfig, demo_arguments(list(argv)), program, tuner_settings)
    from glmft.commands.train import train as run

    with parting():
        run(config)
    return 0


def tuner_settings(train_type: str) -> list[dataclasses.Field]:
    """Settings that one tuner alone has."""
    from glmft.tuners import settings_of

    return settings_of(train_type)


def predict(argv: Sequence[str], program: str) -> int:
    """answer a question or a file (python predict.py)"""
    config = parse_arguments(PredictConfig, with_first("--model_name_or_path", argv), program)
    from glmft.commands.predict import predict as run
    from glmft.commands.score import summary

    with parting():
        results = run(config)
    if "answer" in results:
        print(results["answer"])
    elif results:  # rank 0 has them
        print("\n".join(summary(results)))
        print(f"{results['records']} answers in {results['folder']}/generated_predictions.txt")
    return 0


def score(argv: Sequence[str], program: str) -> int:
    """score a file of predictions"""
    config = parse_arguments(ScoreConfig, with_first("--predictions", argv), program)
    from glmft.commands.score import score as run

    print(run(config))
    return 0


def compare(argv: Sequence[str], program: str) -> int:
    """train in several ways, score, put side by side"""
    own, of_training = split_flags(argv, CompareConfig, TrainConfig)
    config = parse_arguments(CompareConfig, own, program)
    config.train_flags = tuple(of_training)
    from glmft.commands.compare import compare as run

    run(config)
    print()
    print(Path(config.output_dir, "compare.md").read_text(encoding="utf-8"))
    print(f"the same in {config.output_dir}: compare.md, compare.csv, compare_runs.csv, compare.png")
    return 0


def with_first(flag: str, argv: Sequence[str]) -> list[str]:
    """Arguments whose first may stand without its flag."""
    return [*([flag] if argv and not argv[0].startswith("-") else []), *argv]


def inspect(argv: Sequence[str], program: str) -> int:
    """show what would be learned of a file"""
    config = parse_arguments(InspectConfig, with_first("--data_path", argv), program)
    from glmft.commands.inspect_data import inspect_data

    print(inspect_data(config))
    return 0


def plan(argv: Sequence[str], program: str) -> int:
    """say what a run would take in memory and time"""
    config = parse_arguments(PlanConfig, with_first("--model_name_or_path", argv), program, tuner_settings)
    from glmft.commands.plan import plan as run

    print(run(config))
    return 0


def merge(argv: Sequence[str], program: str) -> int:
    """make one model of a base and what was trained   (python merge_lora.py)"""
    config = parse_arguments(MergeConfig, list(argv), program)
    from glmft.commands.merge import merge as run

    print(f"merged model in {run(config)}")
    return 0


def export(argv: Sequence[str], program: str) -> int:
    """hand a model or adapter over to transformers, peft or official code"""
    config = parse_arguments(ExportConfig, with_first("--model_name_or_path", argv), program)
    from glmft.commands.export import export as run

    print(f"exported to {run(config)}")
    return 0


def quantize(argv: Sequence[str], program: str) -> int:
    """write a base in 8 or 4 bits"""
    config = parse_arguments(QuantizeConfig, with_first("--model_name_or_path", argv), program)
    from glmft.commands.quantize import quantize as run

    print(run(config))
    return 0


def chat(argv: Sequence[str], program: str) -> int:
    """talk with models in the terminal"""
    config = with_paths(ChatConfig, argv, program)
    from glmft.commands.chat import chat as run

    return run(config)


def serve(argv: Sequence[str], program: str) -> int:
    """answer requests as OpenAI's API does"""
    config = with_paths(ServeConfig, argv, program)
    from glmft.commands.serve import serve as run

    run(config)
    return 0


def web(argv: Sequence[str], program: str) -> int:
    """a page to talk, and to look at data, runs and predictions"""
    config = with_paths(WebConfig, argv, program)
    from glmft.web.app import web as run

    run(config)
    return 0


def with_paths(kind: type[Settings], argv: Sequence[str], program: str) -> Settings:
    """Settings whose `paths` are the arguments before the first flag."""
    paths = list(itertools.takewhile(lambda argument: not argument.startswith("-"), argv))
    config = parse_arguments(kind, list(argv[len(paths) :]), program)
    config.paths = paths
    return config


COMMANDS: dict[str, Callable[[Sequence[str], str], int]] = {
    "train": train,
    "predict": predict,
    "score": score,
    "compare": compare,
    "merge": merge,
    "export": export,
    "quantize": quantize,
    "inspect": inspect,
    "plan": plan,
    "chat": chat,
    "serve": serve,
    "web": web,
}


def usage() -> str:
    """All commands, a line each."""
    lines = [f"  glmft {name:9}{command.__doc__}" for name, command in COMMANDS.items()]
    head = f"glmft {__version__}: fine-tune the ChatGLM family"
    return "\n".join([head, "", *lines, "", "glmft COMMAND --help lists the settings."])


def run_command(command: str | None = None, program: str | None = None) -> NoReturn:
    """`main` on the arguments of the process, which ends with its code."""
    end_process(main(None, command, program))


def main(argv: Sequence[str] | None = None, command: str | None = None, program: str | None = None) -> int:
    """Run a command and return its exit code: 0, or that of the error (see `glmft.errors`); 130 for Ctrl-C.

    Args:
        argv: arguments; those of the process if None.
        command: one of `COMMANDS`; taken from the arguments if None.
        program: the name shown in help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    hold_standard_files()
    with lasting_output():
        return _main(arguments, command, program)


def _main(arguments: list[str], command: str | None, program: str | None) -> int:
    try:
        if command is None:
            if not arguments or arguments[0] in ("-h", "--help"):
                print(usage())
                return 0 if arguments else 2
            if arguments[0] in ("-V", "--version"):
                print(__version__)
                return 0
            command = arguments.pop(0)
            if command not in COMMANDS:
                raise GlmftError(f"{command}: no such command; there are {', '.join(COMMANDS)}", of_all_ranks=True)
        with contextlib.nullcontext() if command == "train" else alike_on_all_ranks(), interruptible():
            return COMMANDS[command](arguments, program or f"glmft {command}")
    except KeyboardInterrupt as error:
        reason = getattr(error, "reason", "SIGINT")
        line = stopped_line(reason) if command == "train" else f"stopped: by {reason} before it was finished"
        print(line, file=sys.stderr, flush=True)
        return 130 if reason == "SIGINT" else Stopped.exit_code
    except Exception as error:
        known = error if isinstance(error, GlmftError) else of_the_system(error) or Unforeseen(error)
        if is_main() or not known.of_all_ranks:
            label = known.label if is_main() else f"{known.label}: rank {env_rank()}"
            for line in shown(known.problems, label):
                print(line, file=sys.stderr, flush=True)
        return known.exit_code
