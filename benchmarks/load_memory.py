"""Peak memory of loading a base model on several ranks: whole on each (ZeRO-0 to 2), and partitioned (ZeRO-3).

    python -m benchmarks.load_memory [--ranks 2]

Writes a checkpoint of about 0.5 GB in the official layout into a temporary folder, loads it on the CPU in bf16, and
prints for each rank how much more resident memory it held at most than before the loading, over the checkpoint's size.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from glmft.dist import end_process

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {"hidden_size": 1024, "num_layers": 20, "num_attention_heads": 8, "kv_channels": 128, "ffn_hidden_size": 2736}
MIB = 2**20


def resident(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most, RssAnon now without mapped files."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE).group(1)) * 1024


def measure(folder: Path, stage: int) -> dict[str, float]:
    """Of this rank, in MiB: the peak over what it held before, and what of it stays apart from mapped files."""
    import torch

    from glmft import dist
    from glmft.models.loading import load_config, load_model
    from glmft.models.partitioned import load_partitioned

    torch.set_num_threads(1)
    world = dist.start("cpu", "bf16")
    config = load_config(folder)
    load_model(load_config(folder.parent / "small"), folder.parent / "small", world.dtype)  # imports what loading needs
    before, kept = resident("VmRSS"), resident("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    if stage == 3:
        deepspeed = {"train_batch_size": world.size, "zero_optimization": {"stage": 3}}
        model = load_partitioned(config, folder, world, deepspeed, lambda names: set(), torch.float32)
    else:
        model = load_model(config, folder, world.dtype)
    peak = resident("VmHWM") - before
    numbers = sum(p.ds_tensor.numel() if stage == 3 else p.numel() for p in model.parameters())
    return {"peak": peak / MIB, "kept": (resident("RssAnon") - kept) / MIB, "held": numbers * 2 / MIB}


def make(folder: Path) -> None:
    """The checkpoint to load, and a small one."""
    from examples.official_layout import SMALL, make_checkpoint, sentencepiece_model
    from examples.quickstart.make_base import CHARACTERS, corpus

    vocabulary = sentencepiece_model("glm2", corpus(), CHARACTERS)
    make_checkpoint(folder / "small", "glm2", vocabulary, SMALL["glm2"], safetensors=True)
    for name, safetensors in (("safetensors", True), ("bin", False)):
        make_checkpoint(folder / name, "glm2", vocabulary, SHAPE, max_shard_size="100MB", safetensors=safetensors)


def run(folder: Path, stage: int, ranks: int) -> list[dict[str, float]]:
    """`measure` on each of some ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*launcher, "-m", "benchmarks.load_memory", "--folder", str(folder), "--stage", str(stage)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads(line[2:]) for line in done.stdout.splitlines() if line.startswith("@ ")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        figures = json.dumps(measure(args.folder, args.stage))
        sys.stdout.write(f"@ {figures}\n")  # in one piece, as the ranks share the output
        end_process(0)
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary))
        for name in ("safetensors", "bin"):
            folder = Path(temporary) / name
            size = sum(p.stat().st_size for p in folder.iterdir()) / MIB
            print(f"checkpoint of {size:.0f} MiB, {name}, {args.ranks} ranks")
            for stage in (0, 3):
                for rank, found in enumerate(run(folder, stage, args.ranks)):
                    shown = f"peak {found['peak']:.0f} MiB, {found['peak'] / size:.2f} of the checkpoint"
                    held = f"holds {found['held']:.0f} MiB of weights, {found['kept']:.0f} MiB not mapped from a file"
                    print(f"  ZeRO-{stage}, rank {rank}: {shown}; {held}")


if __name__ == "__main__":
    main()
