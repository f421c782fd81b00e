"""The states of all random generators, so that a resumed run draws what it would have drawn."""

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glmft.dist import World
from glmft.errors import CheckpointError
from glmft.reading import read_json_value
from glmft.schema import NULL, Kind, list_of, number, problems, text, whole

RANDOM = "random_states.json"
_WORD = whole(0, 2**32 - 1)


def _is_python_state(value: Any) -> bool:
    """Version 3: 624 words and a position, and perhaps the second of a pair of normal numbers."""
    if not (isinstance(value, list) and len(value) == 3 and value[0] == 3 and list_of(_WORD).passes(value[1])):
        return False
    return len(value[1]) == 625 and value[1][-1] <= 624 and (number() | NULL).passes(value[2])


def _is_numpy_state(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 4 and list_of(_WORD).passes(value[0]) and len(value[0]) == 624):
        return False
    return whole(0, 624).passes(value[1]) and whole(0, 1).passes(value[2]) and number().passes(value[3])


def _is_torch_state(value: Any) -> bool:
    """What torch's own generator takes."""
    if not isinstance(value, str) or not re.fullmatch(r"([0-9a-f]{2}){16,20000}", value):
        return False
    try:
        torch.Generator().set_state(_bytes(value))
    except RuntimeError:
        return False
    return True


KINDS = {
    "cpu": Kind("a state of torch's generator", _is_torch_state),
    "cuda": text(r"([0-9a-f]{2}){8,1000}", 2000),
    "python": Kind("a state of Python's generator", _is_python_state),
    "numpy": Kind("a state of numpy's generator", _is_numpy_state),
}


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


def load_random_states(checkpoint: Path) -> list[dict[str, Any]]:
    """The states of all ranks. Raises CheckpointError if they are none that a generator could take."""
    path = checkpoint / RANDOM
    states = read_json_value(path)
    good = isinstance(states, list) and all(
        isinstance(s, dict) and s.keys() >= {"cpu", "python", "numpy"} for s in states
    )
    for state in states if good else ():
        good = good and not problems(state, KINDS, path)
    if not good:
        raise CheckpointError(f"{path}: holds no states of random generators; resume from another checkpoint")
    return states


def restore_random_state(checkpoint: Path, world: World) -> None:
    """Go on with this rank's random numbers; a rank that did not exist before keeps its fresh ones."""
    states = load_random_states(checkpoint)
    if world.rank < len(states):
        set_random_state(states[world.rank], world)


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
