"""Peak memory and time of merging a LoRA adapter into a base in the official layout, beside peft's merge_and_unload.

    python -m benchmarks.merge [--layers 4] [--shard 1GB] [--format safetensors]

Writes a random checkpoint with ChatGLM2-6B's matrices (fewer layers: 4 make 2.7 GB of float16) and an adapter of rank
16 on all linear layers into a temporary folder. Every figure is of a fresh process that reads and writes the disk: one
that imports what merging needs and ends (the interpreter), `glmft merge` with and without its check, and peft's way
(load, merge_and_unload, save_pretrained). The ratio is peak resident memory beyond the interpreter's, over the largest
file of weights.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


def make(folder: Path, layers: int, shard: str) -> None:
    """The base and the adapter."""
    import torch

    from examples.official_layout import CONFIGS, SMALL, make_checkpoint, sentencepiece_model
    from examples.quickstart.make_base import CHARACTERS, corpus
    from glmft.commands.model_folder import UNITS
    from glmft.models.loading import load_config, meta_model, record_of
    from glmft.tuners.lora import Lora
    from glmft.weights import Stream, write_streams

    vocabulary = sentencepiece_model("glm2", corpus(), CHARACTERS)
    base = make_checkpoint(folder / "base", "glm2", vocabulary, SMALL["glm2"])
    for file in base.glob("*model*.bin*"):
        file.unlink()
    config = json.dumps({**CONFIGS["glm2"], "num_layers": layers})
    (base / "config.json").write_text(config, encoding="utf-8")
    generator = torch.Generator().manual_seed(0)

    def stream(name: str, shape: torch.Size) -> Stream:
        def parts() -> list[torch.Tensor]:
            if len(shape) == 1:
                return [torch.ones(shape, dtype=torch.float16)]
            made = torch.empty(shape, dtype=torch.float16)
            return [made.normal_(0, 0.02, generator=generator)]

        return Stream(name, tuple(shape), torch.float16, parts)

    model = meta_model(load_config(base, "glm2"))
    unit = UNITS[shard[-2:].upper()]
    write_streams([stream(n, t.shape) for n, t in model.state_dict().items()], base, int(shard[:-2]) * unit)
    tuner = Lora(16, 32, 0.0, ",".join(MODULES))
    wrapped = tuner.apply(model)
    state = {
        name: torch.empty(p.shape).normal_(0, 0.02, generator=generator)
        for name, p in ((n.replace(".default", ""), p) for n, p in wrapped.named_parameters() if p.requires_grad)
    }
    (folder / "adapter").mkdir()
    tuner.save(wrapped, state, folder / "adapter", record_of(load_config(base, "glm2"), base))


def by_peft(folder: Path, shard: str) -> None:
    """As peft's documentation merges."""
    import torch
    from peft import PeftModel

    from glmft.models.loading import load_config, load_model

    model = load_model(load_config(folder / "base", "glm2"), folder / "base", torch.float16)
    model = PeftModel.from_pretrained(model, folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "peft", max_shard_size=shard)


def by_glmft(folder: Path, shard: str, ending: str, verify: bool) -> None:
    from glmft.commands.merge import merge
    from glmft.settings.tools import MergeConfig

    out = str(folder / f"glmft-{verify}")
    merge(MergeConfig(model_dir=str(folder / "adapter"), mode="glm2", output_dir=out, max_shard_size=shard,
                      format=ending, verify=verify))  # fmt: skip


def nothing() -> None:
    """What both import."""
    import peft
    import peft.tuners.lora  # noqa: F401

    import glmft.commands.merge
    import glmft.inference.verification
    import glmft.models.loading
    import glmft.tokenizers.loading
    import glmft.tuners.merging  # noqa: F401
    from glmft.commands.quiet import quiet

    quiet()


def child(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    began, said = time.monotonic(), ""
    if args.child == "interpreter":
        nothing()
    elif args.child == "peft":
        nothing()
        began = time.monotonic()
        by_peft(args.folder, args.shard)
    else:
        nothing()
        began = time.monotonic()
        by_glmft(args.folder, args.shard, args.format, args.child == "checked")
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "said": said}))


def measured(args: argparse.Namespace, folder: Path, what: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.merge", "--child", what, "--folder", str(folder)]
    command += ["--shard", args.shard, "--format", args.format, "--threads", str(args.threads)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    *lines, figures = finished.stdout.splitlines()
    print("".join(f"{what}: {line}\n" for line in lines), end="", flush=True)
    return json.loads(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--shard", default="1GB", help="largest weight file, read and written")
    parser.add_argument("--format", default="safetensors", choices=("safetensors", "bin"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, args.layers, args.shard)
        sizes = [file.stat().st_size for file in (folder / "base").glob("*.safetensors")]
        print(
            f"base: {sum(sizes) / 1e9:.2f} GB of float16 in {len(sizes)} files, the largest {max(sizes) / 1e9:.2f} GB"
        )
        interpreter = measured(args, folder, "interpreter")["peak"]
        print(f"{'interpreter':12} peak {interpreter / 1e9:6.2f} GB")
        for what in ("plain", "checked", "peft"):
            figures = measured(args, folder, what)
            beyond = figures["peak"] - interpreter
            print(
                f"{what:12} peak {figures['peak'] / 1e9:6.2f} GB, {beyond / max(sizes):5.2f} x the largest file beyond "
                f"the interpreter, {figures['seconds']:6.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
