"""Training steps of glmft beside the best that can be set up by hand: CPU time per real token, and memory.

    make bench          the whole table and the start of a run, within 45 minutes on 2 cores
    make bench-quick    the same with fewer steps, within 10 minutes
    python -m benchmarks.training --columns lora --arms plain,trainer-expert,glmft --steps 4 --data FILE

The model is a small ChatGLM2 with random weights; the other arms have the same weights in transformers' own GLM. Rows
have the lengths and the supervised tokens of a file's records. Every arm is a process of its own with one thread, all
on one core; they take turns at every step, and their own clocks count. The losses of the first steps have to agree
before anything is measured. An arm that fails is reported with its reason; what is measured by then is kept.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def parser() -> argparse.ArgumentParser:
    from benchmarks.training.arms import ARMS
    from benchmarks.training.columns import COLUMNS, DATA, LONGEST

    made = argparse.ArgumentParser(
        "python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--columns", default=",".join(COLUMNS), help="comma-separated; '' for none")
    made.add_argument("--arms", default=",".join(ARMS), help="the first is what the losses of the others must equal")
    made.add_argument("--data", type=Path, default=DATA, help="file whose records' lengths the rows have")
    made.add_argument("--steps", type=int, default=8, help="optimizer steps that are measured, of 8 records each")
    made.add_argument("--longest", type=int, default=LONGEST, help="tokens that a row has at most")
    made.add_argument("--hidden", type=int, default=256)
    made.add_argument("--layers", type=int, default=4)
    made.add_argument("--words", type=int, default=65_024, help="of the vocabulary")
    made.add_argument("--core", type=int, help="that the arms run on; by default the last there is")
    made.add_argument("--seconds", type=float, default=600, help="that a step may take, before its arm is given up")
    made.add_argument("--no_start", action="store_true", help="leave out the start of a run")
    made.add_argument("--output_dir", type=Path, default=ROOT / "benchmarks", help="of RESULTS.md and results.json")
    return made


def main(argv: list[str] | None = None) -> int:
    """1 if an arm has failed."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from benchmarks.training.arms import ARMS
    from benchmarks.training.columns import COLUMNS
    from benchmarks.training.report import Results
    from benchmarks.training.startup import measure_start
    from benchmarks.training.table import cases_of, measure_column

    args = parser().parse_args(argv)
    columns, arms = [name for name in args.columns.split(",") if name], args.arms.split(",")
    for name in [n for n in columns if n not in COLUMNS] + [n for n in arms if n not in ARMS]:
        raise SystemExit(f"{name}: is none of {', '.join(COLUMNS)}, nor of {', '.join(ARMS)}")
    core = max(os.sched_getaffinity(0)) if args.core is None else args.core
    sizes = {"hidden": args.hidden, "layers": args.layers, "words": args.words}
    command = shlex.join(["python", "-m", "benchmarks.training", *(sys.argv[1:] if argv is None else argv)])
    amount = {"steps": args.steps, "longest": args.longest}
    results = Results(args.output_dir, command, {**sizes, **amount, "data": args.data.name})
    logs = args.output_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for column in columns:
        cases = cases_of(column, arms, **sizes, **amount, data=args.data.resolve(), core=core)
        results.columns[column] = measure_column(cases, logs, args.seconds)
        results.minutes = (time.monotonic() - began) / 60
        results.write()
        print(results.lines_of(column), flush=True)
    if not args.no_start:
        results.start = measure_start(args.data.resolve(), logs, core, **sizes)
        results.minutes = (time.monotonic() - began) / 60
        results.write()
    print(f"{results.markdown}, {results.json}: {results.minutes:.1f} minutes")
    return 1 if results.problems else 0


if __name__ == "__main__":
    sys.exit(main())
