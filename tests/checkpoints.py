"""A small checkpoint, written as the loop writes one."""

import json

import torch

from glmft.dist import World
from glmft.training.checkpoint import OPTIMIZER, publishing
from glmft.training.random_state import RANDOM, random_state
from glmft.training.state import STATE, TrainerState
from glmft.weights import Shards

ALONE = World(0, 0, 1, torch.device("cpu"), torch.float32)


def save(folder, step: int):
    """A checkpoint as the loop writes one, with one moment in it."""
    place = folder / f"checkpoint-{step}"
    with publishing(place, ALONE) as aside:
        shards = Shards(aside, OPTIMIZER)
        shards.add("exp_avg/w", torch.arange(3.0))
        shards.close()
        (aside / "weights.txt").write_text("weights")
        (aside / RANDOM).write_text(json.dumps([random_state(ALONE)]))
        (aside / STATE).write_text(json.dumps(vars(TrainerState(step=step, total_steps=9, loss_sum=1.5))))
    return place
