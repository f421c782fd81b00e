import os
import signal
import threading
import time

import pytest
import torch

from glmft.dist import World
from glmft.training import signals
from glmft.training.signals import OBEYED, Interrupted, StopSignals, interruptible

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


def test_a_signal_that_is_to_be_ignored_is():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(ALONE) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.noted
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", OBEYED)
def test_outside_the_loop_a_signal_interrupts_and_the_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, interruptible():
        os.kill(os.getpid(), number)  # which Python notices before it goes on
    assert caught.value.reason == signal.Signals(number).name
    assert signal.getsignal(number) == before


def interrupted_library() -> None:
    """C++ code that asks Python for something may turn an interruption into an error of its own."""
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    except KeyboardInterrupt:
        raise ValueError("could not determine the shape") from None


def test_what_a_library_makes_of_an_interruption_is_still_one():
    with pytest.raises(Interrupted, match="SIGUSR1"), interruptible():
        interrupted_library()


def test_inside_the_loop_it_only_leaves_a_note():
    with interruptible(), StopSignals(ALONE) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.noted


def test_outside_the_main_thread_nothing_is_caught():
    caught = []

    def run():
        with StopSignals(ALONE) as stop:
            caught.append(stop.before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert caught == [{}]


def test_a_signal_that_the_loop_has_obeyed_does_not_end_the_process_later(monkeypatch):
    """The thread that watches may come to look only after the loop has given its handlers back."""
    ended, look = [], threading.Event()
    own = signal.getsignal
    monkeypatch.setattr(signals, "PATIENCE", 0.2)
    monkeypatch.setattr(os, "_exit", ended.append)

    def late(number):
        if threading.current_thread() is not threading.main_thread():
            look.wait()
        return own(number)

    with interruptible():
        with StopSignals(ALONE):
            monkeypatch.setattr(signals.signal, "getsignal", late)
            os.kill(os.getpid(), signal.SIGTERM)
        look.set()
        time.sleep(0.5)
    assert ended == []
