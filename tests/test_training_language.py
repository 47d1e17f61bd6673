from dataclasses import replace

import pytest
import torch
from helpers.training import GPT, backwards, gpt, song

from weightinit.errors import WeightInitError
from weightinit.training.domains import bits_per_byte
from weightinit.training.language import language_ancestor
from weightinit.training.loop import Recipe
from weightinit.training.presets import Network

NETWORK = Network("gpt2", GPT)
RECIPE = Recipe(steps=60, batch_size=16, lr=1e-2, warmup_steps=5)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A text, and the same backwards."""
    text = song(tmp_path_factory.mktemp("text"))
    return [text, backwards(text)]


def test_an_ancestor_learns_every_task(tasks):
    before = torch.get_rng_state()
    found, card = language_ancestor(None, NETWORK, RECIPE, tasks)
    assert torch.equal(before, torch.get_rng_state()) and not found.training
    fresh = gpt(tasks[0])
    for task in tasks:
        value = bits_per_byte(found, task)
        assert value < 0.85 * bits_per_byte(fresh, task)
        assert card["bits_per_byte"][task.name] == pytest.approx(value, abs=1e-4)
    again, _ = language_ancestor(None, NETWORK, RECIPE, tasks)
    assert all(map(torch.equal, found.parameters(), again.parameters()))
    assert card["recipe"]["steps"] == 60 and card["kwargs"] == GPT


def test_a_given_ancestor_is_taken(tasks):
    own = gpt(tasks[0])
    found, card = language_ancestor(own, NETWORK, None, tasks)
    assert all(map(torch.equal, found.parameters(), own.parameters()))
    assert set(card) == {"source"}


def test_what_does_not_fit_is_refused(tasks):
    wide = [replace(task, vocab=99) for task in tasks]
    with pytest.raises(WeightInitError, match="reads no texts of 99 tokens"):
        language_ancestor(gpt(tasks[0]), NETWORK, None, wide)
    with pytest.raises(WeightInitError, match="load them with one tokenizer"):
        language_ancestor(None, NETWORK, RECIPE, [tasks[0], wide[1]])
