"""The states of all random generators, so that a resumed run draws what it would have drawn."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glmft.dist import World

RANDOM = "random_states.json"


def random_state(world: World) -> dict[str, Any]:
    """The states of all random generators of this rank: torch's (which drive dropout), Python's and numpy's."""
    _, keys, *rest = np.random.get_state()
    states = {
        "cpu": torch.get_rng_state().numpy().tobytes().hex(),
        "python": random.getstate(),
        "numpy": [keys.tolist(), *rest],
    }
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device).numpy().tobytes().hex()
    return states


def set_random_state(states: dict[str, Any], world: World) -> None:
    torch.set_rng_state(_bytes(states["cpu"]))
    if world.device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(_bytes(states["cuda"]), world.device)
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))


def restore_random_state(checkpoint: Path, world: World) -> None:
    """Go on with this rank's random numbers; a rank that did not exist before keeps its fresh ones."""
    states = json.loads((checkpoint / RANDOM).read_text(encoding="utf-8"))
    if world.rank < len(states):
        set_random_state(states[world.rank], world)


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
