import os
import signal
import threading

import pytest
import torch

from glmft.dist import World
from glmft.training import signals
from glmft.training.signals import OBEYED, StopSignals

ALONE = World(0, 0, 1, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("number", OBEYED)
def test_a_signal_is_noted_and_changes_nothing_else(number):
    before = signal.getsignal(number)
    with StopSignals(ALONE) as stop:
        assert not stop.noted
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.noted
        assert stop.agreed()
        assert stop.reason == signal.Signals(number).name
    assert signal.getsignal(number) == before


def test_the_loss_of_the_launcher_is_a_reason_too(monkeypatch):
    monkeypatch.setattr(signals, "launchers", lambda: (10, 11))
    with StopSignals(ALONE) as stop:
        assert not stop.noted
        monkeypatch.setattr(signals, "launchers", lambda: (10, 1))
        assert stop.noted
        assert stop.reason == "the end of the launcher"


def test_outside_the_main_thread_nothing_is_caught():
    caught = []

    def run():
        with StopSignals(ALONE) as stop:
            caught.append(stop.before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert caught == [{}]
