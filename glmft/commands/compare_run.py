"""One run of a comparison: an ordinary run folder, trained by `glmft train`, scored by `glmft predict`."""

import dataclasses
import itertools
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from glmft.commands.predict import predict
from glmft.errors import ConfigError, GlmftError, one_line
from glmft.reading import is_file, read_json
from glmft.settings.answers import PredictConfig
from glmft.settings.config import TrainConfig
from glmft.training.checkpoint import checkpoints
from glmft.training.set_aside import RESULTS, RUN_CONFIG
from glmft.training.tracking import METRICS, read_metrics

# Settings that may differ between a run and what is asked for now: what is trained does not hang on them.
FREE = (
    *("output_dir", "resume", "overwrite_output_dir", "config", "data_dir", "local_rank", "verbose", "report_to"),
    *("show_loss_step", "show_first_record", "num_proc", "cache_dir", "save_total_limit", "rank_timeout"),
)


@dataclass
class Run:
    """What is trained, and where.

    Args:
        tuner: its name in the table.
        flags: of `glmft train`, without seed and folder.
        config: the settings that they give, these two among them.
    """

    tuner: str
    flags: list[str]
    config: TrainConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)


@dataclass
class Outcome:
    """What came of a run.

    Args:
        figures: by name, as in compare_runs.csv.
        failure: why there are none.
    """

    run: Run
    figures: dict[str, float] = field(default_factory=dict)
    failure: str | None = None


def finish_run(run: Run, sets: dict[str, str], launcher: str, max_samples: int | None, log: Path) -> Outcome:
    """Train, unless that is done, and score on each set; what fails is the outcome's failure."""
    try:
        train_run(run, launcher, log)
        figures = training_figures(run.folder)
        for name, path in sets.items():
            figures |= scores_of(run.config, run.folder, path, run.folder / folder_of(name), max_samples, name)
        return Outcome(run, figures)
    except GlmftError as error:
        return Outcome(run, failure=one_line("; ".join(error.problems)))


def train_run(run: Run, launcher: str, log: Path) -> None:
    """Train in a process of its own, from the last checkpoint if there is one. Raises GlmftError if it fails."""
    if changed := changed_settings(run):
        raise ConfigError(f"{run.folder} holds a run of other settings ({'; '.join(changed)}); name another folder")
    if is_file(run.folder / RESULTS):
        return
    flags = [*run.flags, "--seed", str(run.config.seed), "--output_dir", str(run.folder)]
    if is_file(run.folder / RUN_CONFIG):
        flags += ["--resume", "yes"] if checkpoints(run.folder) else ["--overwrite_output_dir"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        code = started(command(flags, launcher), file)
    if code:
        raise GlmftError(f"{reason_in(log)} (exit code {code}; {log})")


def command(flags: list[str], launcher: str) -> list[str]:
    """What starts a training with these flags."""
    words = shlex.split(launcher)
    module = ["--module" if "deepspeed" in Path(words[0]).name else "-m"] if words else [sys.executable, "-m"]
    return [*words, *module, "glmft", "train", *flags]


def started(words: list[str], log: BinaryIO) -> int:
    """The exit code of a process. Whatever ends this one first asks that one to stop, which saves a checkpoint."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def reason_in(log: Path) -> str:
    """The last error that a log tells, or its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("error: ", "stopped: "))]
    return one_line((errors or lines or ["it says nothing"])[-1].removeprefix("error: "))


def changed_settings(run: Run) -> list[str]:
    """In what a run that is there differs from what is asked for."""
    path = run.folder / RUN_CONFIG
    if not is_file(path):
        return []
    was, now = read_json(path), json.loads(json.dumps(dataclasses.asdict(run.config)))
    names = [name for name in now if name in was and name not in FREE and was[name] != now[name]]
    return [f"{name} was {was[name]}, now {now[name]}" for name in names]


# ---------------------------------------------------------------------------------------------------- figures


def training_figures(folder: Path) -> dict[str, float]:
    """What a finished run says of its training. Raises ConfigError."""
    results = read_json(folder / RESULTS)
    names = {
        "last_loss": "final_loss",
        "steps": "steps",
        "peak_memory_bytes": "peak_memory_bytes",
        "trainable_parameters": "trainable_parameters",
        "total_parameters": "total_parameters",
    }
    numbers = {new: results.get(old) for old, new in names.items()}
    figures = {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}
    figures["seconds"] = seconds_of(folder, float(results.get("seconds") or 0.0))
    there = checkpoints(folder)
    if there:
        figures["checkpoint_bytes"] = bytes_in(there[max(there)])
    figures["trained_bytes"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return figures


def seconds_of(folder: Path, last: float) -> float:
    """Seconds of training, those before a resumption too.

    Args:
        last: of the last process.
    """
    seconds = [line["seconds"] for line in read_metrics(folder / METRICS) if isinstance(line.get("seconds"), float)]
    earlier = [a for a, b in itertools.pairwise(seconds) if b < a]  # the clock began anew
    return sum(earlier) + last


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def folder_of(name: str) -> str:
    """Where the answers to a set lie, below the run's folder."""
    return "predict" if name == "test" else f"predict_{name}"


def scores_of(
    config: TrainConfig, model: Path | None, path: str, folder: Path, max_samples: int | None, name: str
) -> dict[str, float]:
    """The scores of a model's answers to one set, F1 from 0 to 1 and the others in percent. Raises GlmftError.

    Args:
        model: the run's folder; None: the base itself.
        name: of the set, which stands before the scores' names.
    """
    taken = {f.name for f in dataclasses.fields(PredictConfig)} & {f.name for f in dataclasses.fields(TrainConfig)}
    taken -= {"output_dir", "resume", "seed", "model_name_or_path", "base_model_path"}
    settings = {field: getattr(config, field) for field in taken}
    base = config.base_model_path or config.model_name_or_path
    if model is not None:
        settings |= {"ptuning_checkpoint": None}
    asked = PredictConfig(
        **settings,
        model_name_or_path=str(model or config.model_name_or_path),
        base_model_path=None if model is None else base,
        test_path=path,
        output_dir=str(folder),
        resume=True,
        max_samples=max_samples,
    )
    results = predict(asked)
    scores = {key.removeprefix("predict_"): value for key, value in results.items() if key.startswith("predict_")}
    if "triple" in results:
        scores = {"f1": results["triple"]["f1"], "f1-micro": results["triple_micro"]["f1"], **scores}
    return {f"{name}/{key}": value for key, value in scores.items()}
