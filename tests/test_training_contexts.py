import random
import signal
import threading

import pytest
import torch
from torch import nn

from weightinit.training.contexts import evaluating, postponed_interrupt, seeded


def test_seeded_puts_the_generators_back_after_an_error():
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(KeyError), seeded(5):
        torch.rand(3), random.random()
        raise KeyError
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_modes_are_put_back_after_an_error():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    module[1].eval()
    with pytest.raises(KeyError), evaluating(module) as device:
        assert not module.training and not torch.is_grad_enabled() and device.type == "cpu"
        raise KeyError
    assert module.training and module[0].training and not module[1].training


def press():
    signal.raise_signal(signal.SIGINT)


def test_the_first_interrupt_waits_and_the_second_does_not():
    with pytest.raises(KeyboardInterrupt), postponed_interrupt() as asked:
        press()
        assert asked.is_set()
        press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupts_that_others_mind_are_left_alone():
    mine, seen = [], []
    before = signal.signal(signal.SIGINT, lambda *_: mine.append(1))
    try:
        with postponed_interrupt() as asked:
            press()
            assert mine == [1] and not asked.is_set()
    finally:
        signal.signal(signal.SIGINT, before)

    def elsewhere():
        with postponed_interrupt() as asked:
            seen.append(asked.is_set())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]
