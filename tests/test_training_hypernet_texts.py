"""Meta-training on texts: the same machine as on images, on GPT-2s."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.training import GPT, GPTS, backwards, gpt, hypernet, killed_and_resumed, song

import weightinit as wi
from weightinit.inherit.running import captured
from weightinit.training.config import MetaConfig
from weightinit.training.hypernet import meta_train
from weightinit.training.targets import GUIDE, Targets, zero_shot
from weightinit.training.tasks import task_embedding

pytest.importorskip("transformers")

UNSEEN = GPTS.kwargs(3, 48, 3)
CONFIG = MetaConfig(steps=6, batch_size=8, lr=1e-3, label_smoothing=0.0)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return song(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def tasks(text):
    """A text, and the same backwards."""
    return [text, backwards(text)]


def test_targets_have_the_datas_vocabulary_and_no_weights(text):
    before = torch.get_rng_state()
    targets = Targets(hypernet())
    target = targets(UNSEEN, text)
    assert torch.equal(before, torch.get_rng_state())
    assert targets(dict(reversed(UNSEEN.items())), text) is target
    assert all(p.is_meta for p in target.model.parameters())
    assert target.anatomy.sizes["v"] == text.vocab and target.anatomy.sizes["t"] == 16
    found = targets.predict(target).parameters()
    assert found.keys() == dict(target.model.named_parameters()).keys()
    assert all(value.requires_grad for value in found.values())


def test_zero_shot_is_the_score_of_the_predicted_network(text):
    net = hypernet()
    predicted = wi.init_from_hypernet(gpt(text, n_layer=3, n_embd=48, n_head=3), net)
    assert zero_shot(net, UNSEEN, text) == pytest.approx(text.score(predicted), rel=1e-5)


def test_a_hypernetwork_learns_a_repeated_text_and_predicts_an_unseen_size(text):
    net = hypernet()
    config = replace(CONFIG, steps=120, lr=3e-3, warmup_steps=5)
    untrained = zero_shot(net, UNSEEN, text)
    history = meta_train(net, text, config, sampler=GPTS, watch=[GPT, UNSEEN], eval_every=60)
    rows = [row for row in history.rows if "val" in row]
    assert [row["step"] for row in rows] == [60, 120]
    assert history.rows[-1]["loss"] < 0.85 * history.rows[0]["loss"]
    fresh = text.score(gpt(text, n_layer=3, n_embd=48, n_head=3))
    found = zero_shot(net, UNSEEN, text)
    assert found < 0.95 * min(fresh, untrained)
    assert rows[-1]["val 16x2"] < 0.8 * min(fresh, untrained)
    assert rows[-1]["val 48x3"] == pytest.approx(found, abs=1e-4)
    assert rows[-1]["val"] == pytest.approx((found + rows[-1]["val 16x2"]) / 2, abs=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_a_killed_run_resumes_bit_for_bit(text, tasks, tmp_path, monkeypatch, several):
    data = tasks if several else text
    options = {
        "sampler": GPTS, "save_every": 2, "eval_every": 3, "watch": [GPT],
        "embeddings": torch.eye(2, 5) if several else None,
    }  # fmt: skip
    kind = ("tal", {"task_dim": 5}) if several else ("logah", {})
    _, history = killed_and_resumed(data, CONFIG, options, kind, tmp_path, monkeypatch)
    if several:
        assert {"val 16x2 song", "val 16x2 back"} <= set(history.rows[-1])


@pytest.mark.parametrize("tied", [False, True])
def test_features_of_texts_guide_and_tell_tasks_apart(text, tasks, tied):
    ancestor = gpt(text, tie_word_embeddings=tied)
    windows = text.windows(text.train)[:, :-1]
    with captured(ancestor) as found:
        ancestor(windows)
    expected = ancestor.transformer(windows).last_hidden_state.flatten(0, 1)
    assert torch.equal(found[0], expected) and found[0].shape == (windows.numel(), 16)
    rows = torch.stack([task_embedding(ancestor, task, batch_size=7) for task in tasks])
    assert torch.allclose(rows[0], expected.mean(0), atol=1e-5)
    assert (rows[0] - rows[1]).abs().max() > 1e-3
    net = hypernet("tal", task_dim=16)
    config = replace(CONFIG, steps=2, guide=0.2)
    history = meta_train(net, tasks, config, sampler=GPTS, teacher=ancestor)
    assert math.isfinite(history.rows[-1]["loss"])
    targets = Targets(net, guide=16)
    assert any(node.roles == (GUIDE,) for node in targets(GPT, text).graph.nodes)
