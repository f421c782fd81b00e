"""A checkpoint whose manifest is in order and whose files say what cannot be."""

import json
import random

import pytest

from glmft.errors import CheckpointError, GlmftError
from glmft.reading import read_json_value
from glmft.training.checkpoint import damage, seal
from glmft.training.random_state import RANDOM, load_random_states, random_state
from glmft.training.state import STATE, TrainerState, load_state

from .conftest import changed, fifo
from .mutations import mutated_json
from .test_folders import tries


@pytest.fixture
def checkpoint(tmp_path):
    from types import SimpleNamespace

    import torch

    world = SimpleNamespace(device=torch.device("cpu"), rank=0)
    (tmp_path / STATE).write_text(json.dumps(vars(TrainerState(step=3, records=4, loss_sum=1.5))))
    (tmp_path / RANDOM).write_text(json.dumps([random_state(world)]))
    seal(tmp_path)
    return tmp_path


def test_a_good_checkpoint_is_read(checkpoint):
    assert damage(checkpoint) is None
    assert load_state(checkpoint).step == 3
    assert len(load_random_states(checkpoint)) == 1


@tries(4)
def test_forged_state(seed, checkpoint):
    """Each forgery is refused with the library's own error, or holds only what the types allow."""
    good = {name: (checkpoint / name).read_text() for name in (STATE, RANDOM)}
    refused = 0
    for number in range(40):
        rng = random.Random(1000 * seed + number)
        name = rng.choice([STATE, RANDOM])
        changed(checkpoint / name, mutated_json(json.loads(good[name]), rng))
        seal(checkpoint)
        try:
            state, states = load_state(checkpoint), load_random_states(checkpoint)
        except GlmftError:
            refused += 1
        else:
            assert isinstance(state.step, int)
            assert state.step >= 0
            assert all(isinstance(entry["cpu"], str) for entry in states)
        changed(checkpoint / name, good[name])
    assert refused


def test_a_pipe_in_the_place_of_a_file_is_damage(checkpoint):
    fifo(checkpoint / STATE)
    assert damage(checkpoint)
    with pytest.raises(Exception, match="regular"):
        read_json_value(checkpoint / STATE)


def test_a_manifest_too_deep_is_damage(checkpoint):
    changed(checkpoint / "manifest.json", '{"files": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert "not whole" in damage(checkpoint)


def test_states_that_are_missing_are_named(checkpoint):
    changed(checkpoint / STATE, "{}")
    with pytest.raises(CheckpointError, match="step is None"):
        load_state(checkpoint)
