"""`glmft compare`: several tuners on one data set from one base, with several seeds, in one table."""

import dataclasses
from pathlib import Path
from typing import Any

from glmft.commands.compare_run import Outcome, Run, finish_run, folder_of, scores_of
from glmft.commands.compare_table import BASE, Row, draw, markdown, published_rows, row_of, write_runs, write_table
from glmft.console import say
from glmft.dist import is_launched
from glmft.errors import ConfigError, GlmftError, nearest
from glmft.files import new_file, refusals_as
from glmft.settings.aliases import VALUES, names_of
from glmft.settings.checks import check, range_problems, text_problems
from glmft.settings.compare import CompareConfig
from glmft.settings.config import TUNERS, TrainConfig
from glmft.settings.defaults import EMBEDDED, shipped, with_defaults
from glmft.settings.flags import in_our_names, parse_arguments
from glmft.settings.sources import find_sources
from glmft.training.tracking import clock

RESERVED = ("resume", "overwrite_output_dir", "train_type", "config")
GENERAL = f"{EMBEDDED}/test_old_task.json"


def compare(config: CompareConfig) -> list[Row]:
    """Finish all runs that are not finished, and write compare.md, compare.csv, compare_runs.csv and compare.png.

    Returns:
        the rows of the table.

    Raises:
        ConfigError: settings that cannot be used, all of them at once, before anything is trained.
        GlmftError: no run could be finished, or a disk is full.
    """
    runs = runs_of(config)
    sets = sets_of(config, runs[0].config)
    folder = Path(config.output_dir)
    before = scores_before(config, runs[0].config, sets)
    outcomes = []
    for number, run in enumerate(runs, 1):
        say([f"run {number} of {len(runs)}: {run.tuner}, seed {run.config.seed}"])
        log = folder / "logs" / f"{run.folder.name}.log"
        outcomes.append(finish_run(run, sets, config.launcher, config.max_samples, log))
        say([told(outcomes[-1])])
        rows = write(config, runs, outcomes, before, sets)
    if all(outcome.failure for outcome in outcomes):
        raise GlmftError(f"no run was finished; {folder / 'compare.md'} says why")
    return rows


def told(outcome: Outcome) -> str:
    """A line on what came of a run."""
    if outcome.failure is not None:
        return f"  failed: {outcome.failure}"
    figures = outcome.figures
    name = next(name for name in ("test/f1", "test/rouge-l") if name in figures)
    return f"  trained in {clock(figures['seconds'])}, {name.removeprefix('test/')} {figures[name]:.4f}"


# ---------------------------------------------------------------------------------------------------- what to run


def runs_of(config: CompareConfig) -> list[Run]:
    """All runs, first those with the first seed. Raises ConfigError with all that is wrong with their settings."""
    problems = text_problems(config) + range_problems(config)
    if is_launched():
        problems.append("glmft compare starts its runs itself; start it without a launcher and name that by --launcher")
    given, _, _ = in_our_names(list(config.train_flags), names_of(RESERVED))
    reserved = [flag for flag in given if flag.removeprefix("--") in RESERVED]
    problems += [f"{flag}: is the comparison's own; see glmft compare --help" for flag in reserved]
    recipes: list[tuple[str, list[str]]] = []
    for part in (part.strip() for part in config.tuners.split(",") if part.strip()):
        recipes += recipes_of(part, problems)
    names = [name for name, _ in recipes]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"--tuners: two are called {name}; rename one file" for name in twice]
    if problems or not recipes:
        raise ConfigError(problems or ["--tuners: names none"])
    named = []
    for name, flags in recipes:
        flags = [*flags, *config.train_flags]
        one, wrong = settings_of_run(name, flags)
        problems += wrong
        named.append((name, flags, one))
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    runs = []
    for number in range(config.num_seeds):
        for name, flags, one in named:
            folder = Path(config.output_dir) / f"{name}-seed-{one.seed + number}"
            of_run = dataclasses.replace(one, seed=one.seed + number, output_dir=str(folder))
            runs.append(Run(name, flags, of_run))
    return runs


def recipes_of(part: str, problems: list[str]) -> list[tuple[str, list[str]]]:
    """(name, flags) of what a part of --tuners stands for."""
    path = Path(part)
    if part in (*TUNERS, *VALUES["train_type"]):
        return [(part, ["--train_type", part])]
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        known = ", ".join(TUNERS)
        problems.append(f"--tuners {part}: is none of {known}, no YAML file, no folder of them{nearest(part, TUNERS)}")
    return [(file.stem, ["--config", str(file)]) for file in files]


def settings_of_run(name: str, flags: list[str]) -> tuple[TrainConfig | None, list[str]]:
    """The settings of a tuner's first run, and what is wrong with them."""
    from glmft.tuners import settings_of

    try:
        config, _ = with_defaults(parse_arguments(TrainConfig, flags, "glmft train", settings_of))
    except ConfigError as error:
        return None, [f"{name}: {problem}" for problem in error.problems]
    return config, [f"{name}: {problem}" for problem in check(config)]


def sets_of(config: CompareConfig, first: TrainConfig) -> dict[str, str]:
    """What is scored: the files of `test` and, where there are any, of `general`. Raises ConfigError."""
    sets = {"test": config.test_path or str(shipped(f"{EMBEDDED}/test.json"))}
    embedded = Path(first.model_name_or_path).resolve() == shipped(f"{EMBEDDED}/base").resolve()
    if config.general_path is not None:
        sets["general"] = config.general_path
    elif embedded and shipped(GENERAL).is_file():
        sets["general"] = str(shipped(GENERAL))
    for name, path in sets.items():
        find_sources(path, f"--{name}_path")
    return sets


def scores_before(config: CompareConfig, first: TrainConfig, sets: dict[str, str]) -> dict[str, float]:
    """The base's scores on each set. Raises GlmftError."""
    say(["the base, before any training"])
    before: dict[str, float] = {}
    for name, path in sets.items():
        folder = Path(config.output_dir) / "base" / folder_of(name)
        before |= scores_of(first, None, path, folder, config.max_samples, name)
    return before


# ---------------------------------------------------------------------------------------------------- what came of it


def write(
    config: CompareConfig, runs: list[Run], outcomes: list[Outcome], before: dict[str, float], sets: dict[str, str]
) -> list[Row]:
    """All files, after each run anew; the picture, when all tuners have another seed.

    Raises CheckpointError if the disk is full.
    """
    folder = Path(config.output_dir)
    names = list(dict.fromkeys(outcome.run.tuner for outcome in outcomes))
    rows = [Row("the base, untrained", BASE, before)]
    rows += [row_of(name, [o for o in outcomes if o.run.tuner == name], before) for name in names]
    rows += published_rows()
    metric = config.metric or ("f1" if "test/f1" in before else "rouge-l")
    with refusals_as(folder, "free some space and give the same command again"):
        with new_file(folder / "compare.md") as aside:
            aside.write_text(markdown(rows, metric, heading(config, runs, len(outcomes), sets)), encoding="utf-8")
        write_table(folder / "compare.csv", rows)
        write_runs(folder / "compare_runs.csv", outcomes)
        if len(outcomes) % len({run.tuner for run in runs}) == 0:
            draw(folder / "compare.png", rows, metric)
    return rows


def heading(config: CompareConfig, runs: list[Run], finished: int, sets: dict[str, str]) -> list[str]:
    """What was compared, in words."""
    first: Any = runs[0].config
    lines = [
        "# Comparison of tuners",
        "",
        f"Base {first.model_name_or_path}, trained on {first.train_path}; scored on {sets['test']}"
        + (f", forgetting on {sets['general']}" if "general" in sets else "")
        + f"; {config.num_seeds} seed{'s' * (config.num_seeds > 1)} from {first.seed}. Means ± standard deviation over "
        "seeds; time and peak memory (of the accelerator, or of the process without one) are of the training.",
    ]
    return lines if finished == len(runs) else [*lines, "", f"{finished} of {len(runs)} runs so far."]
