"""What a step of each ZeRO stage takes and sends, on ranks of this machine, beside what `glmft plan` says.

    python -m benchmarks.traffic [--ranks 2] [--stages 0,1,2,3] [--tuners full,lora]

Each rank is a process of its own, a tiny random ChatGLM2 its model. Counted of the third step: the bytes that
collective calls are about, by wrapping torch's; the bytes of torch's allocator at one time; and, where the kernel lets
an ordinary user have a network of his own (`unshare -rn`), the bytes that go through its loopback device, TCP's headers
included.
"""

import argparse
import fcntl
import gc
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmft.planning.memory import Setting, Zero, memory
from glmft.planning.network import Load
from glmft.planning.run import recomputed_layers
from glmft.planning.shape import Shape
from glmft.planning.time import Traffic, traffic
from glmft.planning.way import way_of
from glmft.settings.config import TrainConfig
from glmft.settings.deepspeed import resolve
from glmft.settings.defaults import find_ds_file

ROOT = Path(__file__).resolve().parents[1]
SHAPE = Shape("glm2", 3000, 64, 4, 8, 2, 16, 160)
TUNERS = {
    "full": {"train_type": "full"},
    "lora": {"train_type": "lora", "lora_module_name": "all-linear", "lora_dim": 16},
    "ptuning": {"train_type": "ptuning", "pre_seq_len": 32},
}
FILES = {0: "ds_zero0.json", 1: "ds_zero1.json", 2: "ds_zero2_no_offload.json", 3: "ds_zero3_no_offload.json"}
LENGTHS, ANSWERS = (200, 57, 120), (50, 30, 20)
STEPS = 3
KINDS = {
    "all_reduce": ("reduced", 0),
    "broadcast": ("reduced", 0),
    "all_gather_into_tensor": ("gathered", 0),
    "all_gather": ("gathered", 0),
    "reduce_scatter_tensor": ("scattered", 1),
    "reduce_scatter": ("scattered", 1),
}


def config_of(tuner: str, stage: int, every: int) -> TrainConfig:
    return TrainConfig(
        **TUNERS[tuner], ds_file=FILES[stage], per_device_train_batch_size=1, gradient_checkpointing=every
    )


def section_of(config: TrainConfig, ranks: int, releases: bool) -> dict[str, Any]:
    """DeepSpeed's settings; `releases`: ZeRO-3 keeps no gathered weight longer than needed, as with a large model."""
    section = resolve(find_ds_file(config.ds_file), config, ranks, "fp32", SHAPE.hidden).config
    if releases:
        section["zero_optimization"] |= {"stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0}
    return section


def predicted(tuner: str, stage: int, ranks: int, every: int = 0, releases: bool = False) -> dict[str, Any]:
    """What the plan says."""
    config = config_of(tuner, stage, every)
    zero = Zero.of(section_of(config, ranks, releases)["zero_optimization"])
    load, again = Load(LENGTHS, sum(ANSWERS)), recomputed_layers(every, SHAPE.layers)
    s = Setting(SHAPE, way_of(config, SHAPE), load, "fp32", 4, None, zero, ranks, again, on_gpu=False)
    found, moved = memory(s), traffic(s, 1)
    most = {name: getattr(found, name) for name in ("forward", "backward", "step")}
    sent = moved.sent(ranks) + Traffic(scattered=moved.scattered).sent(
        ranks
    )  # gloo scatters what it has summed for all
    return {"most": most, **vars(moved), "sent": sent * ranks}


# ------------------------------------------------------------------------------------------------------- a rank


def count_collectives(counts: Counter) -> None:
    """Have torch's collective calls note what they are about."""
    import torch.distributed as distributed

    def counting(name: str, real: Callable, kind: str, place: int) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [*args, *kwargs.values()][place]
            for tensor in tensors if isinstance(tensors, list | tuple) else [tensors]:
                counts[kind] += tensor.nbytes
            return real(*args, **kwargs)

        return call

    for name, (kind, place) in KINDS.items():
        setattr(distributed, name, counting(name, getattr(distributed, name), kind, place))


def model_of(config: TrainConfig) -> Any:
    import torch

    from glmft.models.chatglm2 import ChatGLM2ForConditionalGeneration
    from glmft.models.checkpointing import checkpoint_layers
    from glmft.models.configuration import ChatGLM2Config
    from glmft.tuners import make_tuner

    sizes = {"hidden_size": SHAPE.hidden, "num_layers": SHAPE.layers, "num_attention_heads": SHAPE.heads}
    sizes |= {"kv_channels": SHAPE.head, "multi_query_group_num": SHAPE.groups, "ffn_hidden_size": SHAPE.ffn}
    shape = ChatGLM2Config(padded_vocab_size=SHAPE.vocabulary, glmft_family="glm2", **sizes)
    torch.manual_seed(0)
    model = make_tuner(config).apply(ChatGLM2ForConditionalGeneration._from_config(shape, attn_implementation="sdpa"))
    checkpoint_layers(model, config.gradient_checkpointing)
    return model.train()


def batch_of() -> dict[str, Any]:
    import torch

    ids, first, targets = torch.randint(3, 900, (1, sum(LENGTHS))), 0, []
    labels = torch.full_like(ids, -100)
    for length, answer in zip(LENGTHS, ANSWERS, strict=True):
        start, first = first + length - answer, first + length
        labels[0, start:first] = ids[0, start:first]
        targets += range(start - 1, first - 1)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    batch = {"input_ids": ids, "labels": labels, "position_ids": positions, "documents": LENGTHS}
    return batch | {"loss_positions": torch.tensor(targets)}


def measure(tuner: str, stage: int, every: int, releases: bool) -> dict[str, Any]:
    """The third step of this rank."""
    counts: Counter = Counter()
    count_collectives(counts)
    import deepspeed
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from glmft import dist
    from glmft.training.optim import make_optimizer

    torch.set_num_threads(1)
    config = config_of(tuner, stage, every)
    world = dist.start("cpu", "fp32", None, 600)
    section = section_of(config, world.size, releases)
    model, batch = model_of(config), batch_of()
    optimizer = make_optimizer(model, config)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=section)
    engine.train()

    def step() -> None:
        with record_function("moment forward"):
            engine.set_gradient_accumulation_boundary(True)
            loss = engine(**batch, num_items_in_batch=1, return_logits=False, use_cache=False).loss
        with record_function("moment backward"):
            engine.backward(loss, scale_wrt_gas=False)
            del loss
        with record_function("moment step"):
            engine.step()

    for _ in range(STEPS - 1):
        step()
    gc.collect()
    dist.barrier()
    counts.clear()
    before, there = loopback_bytes(), live_bytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        step()
    moved = dict(counts)
    dist.barrier()
    seen, end = most_of(events)
    gc.collect()
    unseen = max(0, there + end - live_bytes())  # freed by other threads, after each of these moments or before
    most = {moment: there + size for moment, size in seen.items()}
    return {"most": most, "unseen": unseen, **moved, "loopback": loopback_bytes() - before}


def live_bytes() -> int:
    """Of all tensors, each memory once. The allocator's own count would miss what other threads have freed."""
    import torch

    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"}
    return sum(stores.values())


def most_of(events: Any) -> tuple[dict[str, int], int]:
    """Most bytes of the allocator in each moment, over those at the beginning; and those at the end."""
    found = events.profiler.kineto_results.events()
    allocations = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    starts = {e.name().removeprefix("moment "): e.start_ns() for e in found if e.name().startswith("moment ")}
    live, most = 0, dict.fromkeys(starts, 0)
    for time, size in allocations:
        live += size
        now = max((m for m in starts if starts[m] <= time), key=starts.__getitem__, default=None)
        if now:
            most[now] = max(most[now], live)
    return most, live


def loopback_bytes() -> int:
    """What has gone through the loopback device of this network."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    return 0


def raise_loopback() -> None:
    """Set the loopback device of a new network up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        get, put, up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, get, request))[1]
        fcntl.ioctl(any_socket, put, struct.pack("16sh14x", b"lo", flags | up))


# ------------------------------------------------------------------------------------------------------- all ranks


def run_ranks(tuner: str, stage: int, ranks: int, every: int = 0, releases: bool = False) -> dict[str, Any]:
    """What rank 0 measures."""
    with tempfile.TemporaryDirectory() as folder:
        asked = {"tuner": tuner, "stage": stage, "every": every, "releases": releases, "ranks": ranks, "to": folder}
        command = [sys.executable, "-m", "benchmarks.traffic", "--ranks_of", json.dumps(asked)]
        own_network = has_own_network()
        command = ["unshare", "-rn", *command] if own_network else command
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        result = Path(folder) / "0.json"
        if done.returncode or not result.is_file():
            raise RuntimeError(done.stderr[-3000:])
        seen = json.loads(result.read_text())
    return seen if own_network else {**seen, "loopback": None}


def has_own_network() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run(["unshare", "-rn", "true"], check=False).returncode == 0


def all_ranks(asked: dict[str, Any]) -> None:
    """The ranks, in the network of this process."""
    if has_no_loopback():
        raise_loopback()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(asked["ranks"]):
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": asked["ranks"], "MASTER_ADDR": "127.0.0.1"}
        environment = os.environ | {k: str(v) for k, v in given.items()} | {"MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "benchmarks.traffic", "--rank_of", json.dumps(asked)]
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    codes = [rank.wait(timeout=600) for rank in ranks]
    sys.exit(max(codes))


def has_no_loopback() -> bool:
    with socket.socket() as any_socket:
        try:
            any_socket.bind(("127.0.0.1", 0))
        except OSError:
            return True
    state = Path("/sys/class/net/lo/operstate")
    return loopback_bytes() == 0 or (state.is_file() and state.read_text().strip() == "down")


def one_rank(asked: dict[str, Any]) -> None:
    seen = measure(asked["tuner"], asked["stage"], asked["every"], asked["releases"])
    Path(asked["to"], f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
    os._exit(0)


def report(ranks: int, stages: list[int], tuners: list[str]) -> None:
    print(f"{ranks} ranks, gloo; the third step; bytes measured / planned")
    for tuner in tuners:
        for stage in stages:
            for releases in (False, True) if stage == 3 else (False,):
                seen, plan = run_ranks(tuner, stage, ranks, 0, releases), predicted(tuner, stage, ranks, 0, releases)
                kinds = ", ".join(
                    f"{kind} {seen.get(kind, 0):,} / {plan[kind]:,}" for kind in ("reduced", "scattered", "gathered")
                )
                most = max(seen["most"].values()) - seen["unseen"], max(plan["most"].values())
                lo = f", loopback {seen['loopback']:,} / {plan['sent']:,.0f}" if seen["loopback"] else ""
                name = f"{tuner}, ZeRO-{stage}{', releasing' if releases else ''}"
                print(f"{name}: at one time {most[0]:,} / {most[1]:,}; {kinds}{lo}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stages", default="0,1,2,3")
    parser.add_argument("--tuners", default="full,lora")
    parser.add_argument("--ranks_of", help=argparse.SUPPRESS)
    parser.add_argument("--rank_of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank_of:
        one_rank(json.loads(given.rank_of))
    elif given.ranks_of:
        all_ranks(json.loads(given.ranks_of))
    else:
        report(given.ranks, [int(stage) for stage in given.stages.split(",")], given.tuners.split(","))


if __name__ == "__main__":
    main()
