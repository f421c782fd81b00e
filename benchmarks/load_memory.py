"""Peak memory of loading a base model on several ranks: whole (ZeRO-0 to 2), partitioned (ZeRO-3), and by stages.

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


def measure(folder: Path, way: str) -> dict[str, float]:
    """Of this rank, in MiB: the peak over what it held before, and what of it stays apart from mapped files."""
    import torch

    from glmft import dist
    from glmft.models.loading import load_config, load_model, meta_model
    from glmft.models.partition import balanced, weights_by_parameters
    from glmft.models.partitioned import load_partitioned
    from glmft.models.stages import Cut, load_stage

    torch.set_num_threads(1)
    world = dist.start("cpu", "bf16")
    config = load_config(folder)
    load_model(load_config(folder.parent / "small"), folder.parent / "small", world.dtype)  # imports what loading needs
    before, kept = resident("VmRSS"), resident("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    if way == "stages":
        cut = Cut(balanced(*weights_by_parameters(meta_model(config)), world.size), world.rank)
        model = load_stage(config, folder, cut, world.dtype, lambda names: set())
    elif way == "ZeRO-3":
        deepspeed = {"train_batch_size": world.size, "zero_optimization": {"stage": 3}}
        model = load_partitioned(config, folder, world, deepspeed, lambda names: set(), torch.float32)
    else:
        model = load_model(config, folder, world.dtype)
    peak = resident("VmHWM") - before
    here = [getattr(p, "ds_tensor", p) for p in model.parameters() if hasattr(p, "ds_id") or 0 not in p.stride()]
    numbers = sum(tensor.numel() for tensor in here)  # strides of 0 are of zeros that stand for another stage's
    return {"peak": peak / MIB, "kept": (resident("RssAnon") - kept) / MIB, "held": numbers * 2 / MIB}


def make(folder: Path) -> None:
    """The checkpoint to load, and a small one."""
    from examples.official_layout import SMALL, make_checkpoint, sentencepiece_model
    from examples.quickstart.make_base import CHARACTERS, corpus

    vocabulary = sentencepiece_model("glm2", corpus(), CHARACTERS)
    make_checkpoint(folder / "small", "glm2", vocabulary, SMALL["glm2"], safetensors=True)
    for name, safetensors in (("safetensors", True), ("bin", False)):
        make_checkpoint(folder / name, "glm2", vocabulary, SHAPE, max_shard_size="100MB", safetensors=safetensors)


def run(folder: Path, way: str, ranks: int) -> list[dict[str, float]]:
    """`measure` on each of some ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*launcher, "-m", "benchmarks.load_memory", "--folder", str(folder), "--way", way]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads(line[2:]) for line in done.stdout.splitlines() if line.startswith("@ ")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        figures = json.dumps(measure(args.folder, args.way))
        sys.stdout.write(f"@ {figures}\n")  # in one piece, as the ranks share the output
        end_process(0)
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary))
        for name in ("safetensors", "bin"):
            folder = Path(temporary) / name
            size = sum(p.stat().st_size for p in folder.iterdir()) / MIB
            print(f"checkpoint of {size:.0f} MiB, {name}, {args.ranks} ranks")
            for way in ("ZeRO-0", "ZeRO-3", "stages"):
                for rank, found in enumerate(run(folder, way, args.ranks)):
                    shown = f"peak {found['peak']:.0f} MiB, {found['peak'] / size:.2f} of the checkpoint"
                    held = f"holds {found['held']:.0f} MiB of weights, {found['kept']:.0f} MiB not mapped from a file"
                    print(f"  {way}, rank {rank}: {shown}; {held}")


if __name__ == "__main__":
    main()
