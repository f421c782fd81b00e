"""How long a run takes from its start to the end of its first step, beside its imports alone and an ordinary step.

All three are seconds of CPU of a process of its own: a run of `glmft train` on a folder in the official layout, and a
process that imports what that run has imported by then.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.training.columns import LONGEST, ROOT, WINDOW

STEPS = 4
SECONDS = 900
IMPORTS = """import importlib, pathlib, sys, time
for name in pathlib.Path(sys.argv[1]).read_text().split():
    try:
        importlib.import_module(name)
    except Exception:
        pass
print()
print(time.process_time())
"""


def measure_start(data: Path, logs: Path, core: int, **sizes: int) -> dict[str, Any]:
    """Seconds of CPU: `first_step` from the start to its end, `imports`, one `step`; `parts` of the imports.

    A `problem` in their place, if the run fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_base(folder / "base", **sizes)
        clocks, modules = folder / "clocks.json", folder / "modules.txt"
        argv = ["--model_name_or_path", str(base), "--train_path", str(data), "--output_dir", str(folder / "out")]
        argv += ["--lora_module_name", "all-linear", "--lora_dim", "16", "--max_len", str(LONGEST), "--device", "cpu"]
        argv += ["--per_device_train_batch_size", str(WINDOW), "--max_steps", str(STEPS)]
        run = [sys.executable, "-m", "benchmarks.training.startup", str(clocks), str(modules), *argv]
        log = logs / "start.log"
        if problem := command(run, log, core):
            return {"problem": f"{problem}; see {log.name}"}
        steps = json.loads(clocks.read_text())
        imported = [sys.executable, "-c", IMPORTS, str(modules)]
        command(imported, logs / "imports.log", core)
        imports = float((logs / "imports.log").read_text(encoding="utf-8").split()[-1])
        command([imported[0], "-X", "importtime", *imported[1:]], logs / "importtime.log", core)
        ordinary = sorted(later - earlier for earlier, later in pairwise(steps[1:]))
        parts = import_parts((logs / "importtime.log").read_text(encoding="utf-8"))
        step = ordinary[len(ordinary) // 2]
        return {"first_step": steps[1], "imports": imports, "step": step, "parts": parts}


def make_base(folder: Path, hidden: int, layers: int, words: int) -> Path:
    """A small ChatGLM2 in the official layout."""
    from examples.official_layout import make_checkpoint, sentencepiece_model
    from examples.quickstart.make_base import CHARACTERS, corpus

    shape = {
        **{"hidden_size": hidden, "num_layers": layers, "num_attention_heads": hidden // 32, "kv_channels": 32},
        **{"ffn_hidden_size": 688 * hidden // 256, "padded_vocab_size": max(words, 4096)},
    }
    vocabulary = sentencepiece_model("glm2", corpus(), CHARACTERS)
    return make_checkpoint(folder, "glm2", vocabulary, shape, safetensors=True)


def command(argv: list[str], log: Path, core: int) -> str | None:
    """Run to its end on one core; why it has failed, if it has."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pinned = (lambda: os.sched_setaffinity(0, {core})) if hasattr(os, "sched_setaffinity") else None
    with log.open("w") as file:
        try:
            ended = subprocess.run(
                argv, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=SECONDS, preexec_fn=pinned
            )
        except subprocess.TimeoutExpired:
            return f"no end within {SECONDS} s"
    return f"ended with {ended.returncode}" if ended.returncode else None


def import_parts(log: str) -> dict[str, float]:
    """The share of each package, the largest first, of what `python -X importtime` prints."""
    seconds: Counter[str] = Counter()
    for line in log.splitlines():
        if line.startswith("import time:") and "self [us]" not in line:
            own, _, name = line.removeprefix("import time:").split("|")
            seconds[name.strip().partition(".")[0]] += int(own) / 1e6
    total = sum(seconds.values())
    shown = {name: own / total for name, own in seconds.most_common(10)}
    return shown | {"everything else": 1 - sum(shown.values())}


def main() -> int:
    """A run whose steps' beginnings, in seconds of this process's CPU, go to a file; and what is imported by then."""
    clocks, modules, *argv = sys.argv[1:]
    from glmft.cli import main as glmft
    from glmft.data.sampler import Plan

    seconds: list[float] = []
    windows = Plan.windows

    def timed(plan: Plan, start: int, total: int) -> Iterator[tuple[int, list[int]]]:
        whole_run = total - start >= STEPS and sys._getframe(1).f_code.co_name == "train"
        for step, window in windows(plan, start, total):
            if whole_run:
                note(seconds, modules)
            yield step, window
        if whole_run:
            note(seconds, modules)

    Plan.windows = timed
    code = glmft(argv, command="train")
    Path(clocks).write_text(json.dumps(seconds))
    return code


def note(seconds: list[float], modules: str) -> None:
    seconds.append(time.process_time())
    if len(seconds) == 2:  # the first step has just ended
        Path(modules).write_text("\n".join(name for name in list(sys.modules) if name != "__main__"))


if __name__ == "__main__":
    sys.exit(main())
