"""One command for a machine with a CUDA GPU: the tests that need one, and training steps at ChatGLM2-6B's real shape.

    make gpu                             within ten minutes; benchmarks/GPU.md and gpu.json
    python -m benchmarks.gpu --no_tests --works lora-16k --arms glmft

The weights are random and made on the device. Each measurement is a process of its own: one that fails is reported with
its reason, and the others go on. What is known is written after each.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESERVE = 20  # seconds to end in
# Of what is started, unless it is set: one GPU, or the Trainer takes all; memory that can grow without holes.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "0", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def main(argv: list[str] | None = None) -> int:
    """1 if something has failed, 2 without a GPU."""
    from benchmarks.gpu.arms import ARMS
    from benchmarks.gpu.work import CHATGLM2_6B, SMALL, WORKS

    made = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: at a small size, to try this out")
    made.add_argument("--works", default=",".join(WORKS), help="comma-separated")
    made.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    made.add_argument("--minutes", type=float, default=9.5, help="for all of it; what no longer fits is left out")
    made.add_argument("--no_tests", action="store_true", help="leave the tests out")
    made.add_argument("--output_dir", type=Path, default=ROOT / "benchmarks", help="of GPU.md and gpu.json")
    made.add_argument("--one", nargs=2, metavar=("WORK", "ARM"), help="measure this, in this process")
    made.add_argument("--checkpointing", action="store_true", help="of --one: compute the layers again")
    args = made.parse_args(argv)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            f"make gpu: torch {torch.__version__} sees no CUDA GPU here; it needs a machine with one and torch's CUDA "
            "wheel, which `make` installs there"
        )
        return 2
    shape = CHATGLM2_6B if args.device == "cuda" else SMALL
    if args.one:
        return measure_one(*args.one, shape, args.device, args.checkpointing)
    return run_all(args, args.works.split(","), args.arms.split(","))


def measure_one(name: str, arm: str, shape: dict[str, Any], device: str, checkpointing: bool) -> int:
    """Print the figures as the last line, as JSON. Without room it starts again with checkpointing."""
    import torch

    from benchmarks.gpu.arms import Clock, measure
    from benchmarks.gpu.work import WORKS

    on_gpu = device == "cuda"
    work, clock = WORKS[name] if on_gpu else WORKS[name].cut(48), Clock(device, *((10, 12) if on_gpu else (2, 1)))
    try:
        speed = measure(arm, work, shape, device, clock, checkpointing)
    except torch.OutOfMemoryError:
        if checkpointing:
            raise
        again = ["-m", "benchmarks.gpu", "--device", device, "--one", name, arm, "--checkpointing"]
        os.execv(sys.executable, [sys.executable, *again])
    print(json.dumps(speed.as_json()))
    return 0


def run_all(args: argparse.Namespace, works: list[str], arms: list[str]) -> int:
    from benchmarks.gpu.report import Findings

    began = time.monotonic()
    found = Findings(args.output_dir, shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]), args.device)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    logs = args.output_dir / "logs"
    logs.mkdir(exist_ok=True)

    def left() -> float:
        return 60 * args.minutes - (time.monotonic() - began) - RESERVE

    for work in works:
        for arm in arms:
            argv = ["-m", "benchmarks.gpu", "--device", args.device, "--one", work, arm]
            printed, problem = command(argv, logs / f"gpu-{work}-{arm}.log", min(180, left()))
            found.note(work, arm, problem or json.loads(printed.splitlines()[-1]))
            found.write((time.monotonic() - began) / 60)
            print(found.line(work, arm), flush=True)
    if not args.no_tests:
        workers = str(min(4, os.cpu_count() or 1))
        marked = "gpu" if args.device == "cuda" else "not slow and not gpu"
        argv = ["-m", "pytest", "-m", marked, "-n", workers, "--dist", "worksteal", "-rs", "--tb=short", "tests/gpu"]
        printed, problem = command(argv, logs / "gpu-tests.log", left())
        found.tests, found.tests_problem = printed.strip().splitlines()[-12:], problem
        found.write((time.monotonic() - began) / 60)
        print("\n".join(found.tests) if not problem else f"tests: {problem}", flush=True)
    print(f"{found.markdown}, {found.json}: {(time.monotonic() - began) / 60:.1f} minutes")
    return 1 if found.problems else 0


def command(argv: list[str], log: Path, seconds: float) -> tuple[str, str | None]:
    """What a process of this Python prints to its standard output, and why it has failed, if it has."""
    if seconds <= 0:
        return "", "no time was left"
    with log.open("w", encoding="utf-8") as errors:
        try:
            ended = subprocess.run(
                [sys.executable, *argv],
                cwd=ROOT,
                env={**ENVIRONMENT, **os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as late:
            printed = late.stdout or b""
            return printed.decode() if isinstance(printed, bytes) else printed, f"no end within {seconds:.0f} s"
    if not ended.returncode:
        return ended.stdout, None
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    reason = said[-1][:300] if said and "pytest" not in argv else f"ended with {ended.returncode}"
    return ended.stdout, f"{reason}; see logs/{log.name}"


if __name__ == "__main__":
    sys.exit(main())
