from dataclasses import replace

import pytest
import torch
from test_training_domains import ONE, model, tasks, text  # noqa: F401  (fixtures)

from weightinit.errors import WeightInitError
from weightinit.training.domains import bits_per_byte
from weightinit.training.language import language_ancestor
from weightinit.training.loop import Recipe
from weightinit.training.presets import Network

NETWORK = Network("gpt2", ONE)
RECIPE = Recipe(steps=60, batch_size=16, lr=1e-2, warmup_steps=5)


def test_an_ancestor_learns_every_task(tasks):  # noqa: F811
    before = torch.get_rng_state()
    found, card = language_ancestor(None, NETWORK, RECIPE, tasks)
    assert torch.equal(before, torch.get_rng_state()) and not found.training
    fresh = model(tasks[0])
    for task in tasks:
        value = bits_per_byte(found, task)
        assert value < 0.85 * bits_per_byte(fresh, task)
        assert card["bits_per_byte"][task.name] == pytest.approx(value, abs=1e-4)
    again, _ = language_ancestor(None, NETWORK, RECIPE, tasks)
    assert all(map(torch.equal, found.parameters(), again.parameters()))
    assert card["recipe"]["steps"] == 60 and card["kwargs"] == ONE


def test_a_given_ancestor_is_taken(tasks):  # noqa: F811
    own = model(tasks[0])
    found, card = language_ancestor(own, NETWORK, None, tasks)
    assert all(map(torch.equal, found.parameters(), own.parameters()))
    assert set(card) == {"source"}


def test_what_does_not_fit_is_refused(tasks):  # noqa: F811
    wide = [replace(task, vocab=99) for task in tasks]
    with pytest.raises(WeightInitError, match="reads no texts of 99 tokens"):
        language_ancestor(model(tasks[0]), NETWORK, None, wide)
    with pytest.raises(WeightInitError, match="load them with one tokenizer"):
        language_ancestor(None, NETWORK, RECIPE, [tasks[0], wide[1]])
