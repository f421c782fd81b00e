"""What comes into the lowest layer that trains never changes: for each row it is computed once, and then read.

The layers below run over the micro-batches of the first epoch, before its first step; every step then starts from what
came out of them. In that epoch losses and gradients are to the bit those of a run that keeps nothing. In later ones a
row shares its matrix products with other rows than it did when its states were made: they are equal to rounding.
"""

import array
import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmft.console import say
from glmft.data.sampler import Plan
from glmft.dist import barrier, cache_home, gather_objects, same_fate
from glmft.errors import ConfigError
from glmft.files import WRITING, place_folder, remove_folder, start_folder
from glmft.models.prefix import VirtualTokens
from glmft.settings.config import TrainConfig
from glmft.settings.modules import lowest_layer
from glmft.training.job import Batch, Job, autocast, make_batch
from glmft.training.kept_states import (
    DamagedStates,
    KeptStates,
    StatesFile,
    damage,
    require_room,
    seal,
    shares,
)

FLAG = "--cache_frozen_activations"
LAYOUT = 1  # raise it when states come out differently


def boundary_layer(trained: Iterable[str], layers: int) -> int:
    """The lowest of so many layers that needs gradients; 0 if something before them trains.

    The last one runs in any case: it leaves out the tokens that no loss is asked of.

    Args:
        trained: names of the parameters that train.
    """
    return min(lowest_layer(list(trained), layers), layers - 1)


def why_not(config: TrainConfig, shape: Any, layer: int, plan: Plan) -> str | None:
    """Why nothing can be kept, or nothing is gained by it; None: there is no reason.

    Args:
        shape: the model's configuration.
        layer: what `boundary_layer` gives.
    """
    epochs = plan.total_steps(config.num_train_epochs, config.max_steps) / plan.steps_per_epoch
    reasons = {
        f"with --train_type {config.train_type} and its settings, layer 0 or what stands before it trains": not layer,
        "the run sees each record once at most": epochs <= 1,
        "virtual tokens of the base stand before every layer": shape.pre_seq_len or shape.prompt_seq_len,
        "the base's attention has a dropout": getattr(shape, "attention_dropout", 0.0),
        "--use_reentrant needs a gradient of the embeddings": config.gradient_checkpointing and config.use_reentrant,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def kept_states(model: nn.Module, job: Job) -> KeptStates | None:
    """The states that come into the job's boundary layer; made now if they are not on disk. Collective.

    None if nothing is kept. Raises ConfigError if the disk has no room for them.
    """
    if not job.boundary:
        return None
    home = Path(job.config.cache_dir) if job.config.cache_dir else cache_home()
    folder = gather_objects(job.world, home / f"boundary-{key_of(job)}" if job.world.is_main else None)[0]
    layers = range(job.boundary, model.config.num_hidden_layers)
    with _locked(folder, job):
        problems = gather_objects(job.world, damage(folder, job.world.rank))
        is_made = all(problem is None for problem in problems)
        if not is_made:
            make_states(model, folder, job)
        with same_fate():
            try:
                states = KeptStates(folder, job.plan, layers)
            except DamagedStates as error:
                raise ConfigError(f"{FLAG}: {folder}: {error}; all hosts must see one --cache_dir") from None
    if is_made:
        announce(job, "were there already", sum(file.nbytes for file in states.files), folder)
    return states


def announce(job: Job, what: str, size: int, folder: Path) -> None:
    """A line of rank 0 on the states.

    Args:
        size: in bytes.
    """
    below = "layer 0" if job.boundary == 1 else f"layers 0 to {job.boundary - 1}"
    say([f"states behind the frozen {below} {what}: {size / 2**30:.2f} GiB in {folder}"] if job.world.is_main else [])


def make_states(model: nn.Module, folder: Path, job: Job) -> None:
    """Run the layers below the boundary over all rows, and write what comes out. Collective."""
    from tqdm import tqdm

    world, plan = job.world, job.plan
    parts = list(shares(plan, world.rank))
    aside = folder.with_name(f"{WRITING}{folder.name}")
    first = come_into(model, job.boundary, make_batch(job.rows, parts[0][1], parts[0][0], job), job)
    size = sum(plan.tokens) * first.shape[-1] * first.dtype.itemsize
    with same_fate(), _refusals(folder):
        if world.is_main:
            require_room(folder, size, FLAG)
            start_folder(folder)
    announce(job, "are made", size, folder)
    try:
        with same_fate(), _refusals(folder):
            file = StatesFile(aside, world.rank)
            for window, rows in tqdm(parts, desc="frozen layers", unit=" micro-batches", disable=None):
                states = come_into(model, job.boundary, make_batch(job.rows, rows, window, job), job)
                if rows:
                    file.write(states[0])
            entry = file.close()
        files = gather_objects(world, entry)
        with same_fate(), _refusals(folder):
            if world.is_main:
                seal(aside, files, first.dtype, first.shape[-1])
                place_folder(aside, folder)
    finally:
        if world.is_main:
            remove_folder(aside)
    barrier()


@torch.no_grad()
def come_into(model: nn.Module, layer: int, batch: Batch, job: Job) -> Tensor:
    """[1, s, h]: what comes into a layer."""
    decoder = next(module for module in model.modules() if isinstance(module, VirtualTokens))
    given = {name: batch[name] for name in ("input_ids", "position_ids", "documents", "contexts") if name in batch}
    with autocast(job.world):
        return decoder(**given, use_cache=False, return_dict=True, layers=range(layer)).last_hidden_state


def key_of(job: Job) -> str:
    """A hash over all that the states hang on, to the bit: base, rows, and which of them are computed together."""
    plan, config, rows = job.plan, job.config, hashlib.sha256()
    for row in job.rows.examples:
        parts = getattr(row, "parts", (len(row.ids),))
        rows.update(array.array("q", (len(parts), *parts, *row.ids)).tobytes())
    described = {
        "layout": LAYOUT,
        "torch": torch.__version__,
        "base": [job.base[name] for name in ("family", "base_fingerprint", "base_quantization")],
        "layer": job.boundary,
        "computed": [str(job.world.dtype), job.world.device.type, config.attn_implementation],
        "rows": rows.hexdigest(),
        "together": [plan.micro_batch, plan.accumulation, plan.world_size, plan.seed, plan.max_tokens, plan.joins],
        "grouped": plan.lengths is not None,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _locked(folder: Path, job: Job) -> Iterator[None]:
    """Inside, this run alone makes the folder: rank 0 waits for another that does."""
    from filelock import FileLock

    with contextlib.ExitStack() as stack:
        with same_fate(), _refusals(folder):
            if job.world.is_main:
                folder.parent.mkdir(parents=True, exist_ok=True)
                remove_dead(folder.parent)
                stack.enter_context(FileLock(folder.with_name(f"{folder.name}.lock")))
        yield


def remove_dead(home: Path) -> None:
    """Remove what runs that were killed have left half written; nobody has its lock any more."""
    from filelock import FileLock, Timeout

    for aside in home.glob(f"{WRITING}boundary-*"):
        lock = FileLock(home / f"{aside.name.removeprefix(WRITING)}.lock")
        with contextlib.suppress(Timeout), lock.acquire(timeout=0):
            remove_folder(aside)


@contextlib.contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """What the file system refuses becomes a ConfigError of one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{FLAG}: {folder}: could not be written ({reason}); name another --cache_dir") from None
