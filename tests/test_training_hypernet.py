import json
from dataclasses import replace

import pytest
import torch
from helpers.models import state_hash, vit
from helpers.processes import TESTS, torchrun
from helpers.training import VITS, bits, equal, hypernet, killed_and_resumed

from weightinit.errors import WeightInitError
from weightinit.hypernet.samplers import Sampler, micro
from weightinit.training import hypernet as module
from weightinit.training.config import MetaConfig
from weightinit.training.data import load_data
from weightinit.training.hypernet import meta_train
from weightinit.training.targets import zero_shot
from weightinit.training.tasks import task_embedding

ONE = micro(32, 2, image_size=8) | {"patch_size": 4}
CONFIG = MetaConfig(steps=6, batch_size=16, lr=1e-3, label_smoothing=0.0)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def tasks(digits):
    """Two tasks: all ten digits, and 400 images of whether a digit is even."""
    cut = digits.train.rows(torch.arange(400))
    parts = {
        part: replace(split, labels=split.labels % 2)
        for part, split in (("train", cut), ("val", digits.val), ("test", digits.test))
    }
    return [digits, replace(digits, name="parity", classes=2, **parts)]


@pytest.mark.slow
def test_it_learns_to_predict_and_reports(digits, tmp_path):
    """From the rule's projection of a random network to one that reads digits."""
    ancestor = vit(embed_dim=32, num_classes=10, patch_size=4)
    before = state_hash(ancestor)
    net = hypernet("pith", start="rule")
    config = replace(CONFIG, steps=150, batch_size=64, lr=1e-2, warmup_steps=10)
    sampler = Sampler("one", {2: (32,)}, "sixteenths", {8: (4,)}, class_token=False)
    options = {"sampler": sampler, "ancestor": ancestor, "watch": [ONE]}
    history = meta_train(net, digits, config, out=tmp_path, eval_every=75, **options)
    assert history.val > 40  # of 100, where chance has 10
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert [row["step"] for row in history.rows if "val" in row] == [75, 150]
    assert history.rows[-1]["val"] == history.rows[-1]["val 32x2"]
    found = zero_shot(net, ONE, digits, ancestor=ancestor)
    assert found == pytest.approx(history.val, abs=0.01)
    saved = json.loads((tmp_path / "history.json").read_text())
    assert saved["config"]["sampler"] == "one" and saved["rows"] == history.rows
    assert state_hash(ancestor) == before


@pytest.mark.parametrize("kind", ["ghn3", "logah", "tal", "pith"])
def test_every_kind_trains(digits, kind):
    changes = {"tal": {"task_dim": 16}, "ghn3": {"rank": 0, "max_shape": (16, 16, 8)}}.get(kind, {})
    net = hypernet(kind, **changes)
    before = bits(net)
    options = {"ancestor": vit(num_classes=10)} if kind in ("tal", "pith") else {}
    config = replace(CONFIG, steps=3, guide=0.2 if kind == "tal" else 0.0, architectures=2)
    history = meta_train(net, digits, config, sampler=VITS, watch=[ONE], **options)
    after = bits(net)
    trained = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"embed.weight", "ln.weight", "gnn.0.attn.to_qkv.weight"} <= trained
    assert 0 <= history.val <= 100 and all(torch.isfinite(v).all() for v in after.values())


@pytest.mark.parametrize("several", [False, True])
def test_a_killed_run_resumes_bit_for_bit(digits, tasks, tmp_path, monkeypatch, several):
    data = tasks if several else digits
    options = {
        "sampler": VITS, "save_every": 2, "eval_every": 3, "watch": [ONE],
        "embeddings": torch.ones(2, 5) if several else None,
    }  # fmt: skip
    kind = ("tal", {"task_dim": 5}) if several else ("logah", {})
    resumed, _ = killed_and_resumed(data, CONFIG, options, kind, tmp_path, monkeypatch)
    with pytest.raises(WeightInitError, match="trained by another config"):
        meta_train(resumed, data, replace(CONFIG, lr=1.0), out=tmp_path, resume=True, **options)


def test_several_architectures_are_averaged(digits, monkeypatch):
    """One step with two architectures is the mean of their gradients."""
    drawn = [micro(32, 2, image_size=8), micro(48, 2, image_size=8)]
    seen = {}

    def gradients(kwargs):
        net, left = hypernet(), list(kwargs)
        monkeypatch.setattr(module, "sample", lambda *_, **__: left.pop(0))
        config = replace(CONFIG, steps=1, architectures=len(kwargs), clip_grad=0.0, batch_size=8)
        real = torch.optim.AdamW.step

        def step(self, *arguments, **options):
            found = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
            seen["grads"] = found
            return real(self, *arguments, **options)

        monkeypatch.setattr(torch.optim.AdamW, "step", step)
        meta_train(net, digits, config, sampler=VITS)
        monkeypatch.setattr(torch.optim.AdamW, "step", real)
        return seen["grads"]

    both, first, second = gradients(drawn), gradients(drawn[:1]), gradients(drawn[1:])
    for name, value in both.items():
        wanted = (first[name] + second[name]) / 2
        assert torch.allclose(value, wanted, atol=1e-6, rtol=1e-4), name


def test_the_second_stage_trains_what_the_paper_trains(tasks):
    net = hypernet("tal", task_dim=16)
    before = bits(net)
    ancestor = vit(num_classes=10)
    config = replace(CONFIG, frozen=True, steps=8)
    history = meta_train(net, tasks, config, sampler=VITS, ancestor=ancestor, watch=[ONE])
    after = bits(net)
    trained = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {name for name in before if name.startswith("gnn.")}
    film = {name for name in layers if ".TEN." in name}
    assert film and film <= trained and not (layers - film) & trained
    assert {"embed.weight", "ln.weight", "decoder.l2.weight"} <= trained
    assert all(p.requires_grad for p in net.parameters())
    assert {"val 32x2 digits", "val 32x2 parity"} <= set(history.rows[-1])
    rows = torch.stack([task_embedding(ancestor, task) for task in tasks])
    again = hypernet("tal", task_dim=16)
    meta_train(again, tasks, config, sampler=VITS, embeddings=rows)
    assert equal(bits(again), after)


def test_bad_input_is_refused(digits, tasks):
    with pytest.raises(WeightInitError, match="pass ancestor="):
        meta_train(hypernet(), digits, replace(CONFIG, guide=0.2), sampler=VITS)
    with pytest.raises(WeightInitError, match="PITH predicts no projection for a guide"):
        meta_train(hypernet("pith"), digits, replace(CONFIG, guide=0.2), ancestor=vit())
    with pytest.raises(WeightInitError, match="bring them to one square shape"):
        meta_train(hypernet(), [tasks[0], tasks[1].in_shape(8)], CONFIG, sampler=VITS)
    with pytest.raises(WeightInitError, match="trains no vision transformers"):
        meta_train(hypernet(), digits, CONFIG, sampler="gpts-1k")


def test_a_loss_that_is_not_finite_raises(digits):
    net = hypernet()
    with torch.no_grad():
        net.decoder.l2.weight.fill_(float("nan"))
    with pytest.raises(WeightInitError, match="the loss is nan at step 0: use a lower lr"):
        meta_train(net, digits, CONFIG, sampler=VITS)


def test_the_global_generator_is_left_alone(digits):
    before = torch.get_rng_state()
    meta_train(hypernet(), digits, replace(CONFIG, steps=2), sampler=VITS)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(digits, precision):
    net = hypernet()
    history = meta_train(net, digits, replace(CONFIG, precision=precision), sampler=VITS)
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert history.rows[0]["loss"] > 0


@pytest.mark.slow
def test_processes_share_the_batch_and_end_alike(tmp_path):
    """Two processes draw architectures of their own, and hold the same weights afterwards."""
    printed = torchrun(TESTS / "helpers" / "meta_worker.py", tmp_path / "out")
    sums = [line for line in printed.splitlines() if line.startswith("sum")]
    assert len(sums) == 2 and sums[0] == sums[1]
    assert (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_several_ancestors_are_learned_from(digits):
    """One is drawn for each architecture; each gets its own predictions; the first is scored."""
    old = [vit(embed_dim=32, num_classes=10), vit(embed_dim=48, num_heads=3, num_classes=10)]
    before = [state_hash(one) for one in old]
    net, alone = hypernet("pith", start="rule"), hypernet("pith", start="rule")
    alone.load_state_dict(net.state_dict())
    config = replace(CONFIG, architectures=2)
    history = meta_train(net, digits, config, sampler=VITS, ancestor=old, watch=[ONE])
    meta_train(alone, digits, config, sampler=VITS, ancestor=old[:1])
    assert not equal(bits(net), bits(alone))
    found = zero_shot(net, ONE, digits, ancestor=old[0])
    assert history.rows[-1]["val"] == pytest.approx(found, abs=0.01)
    assert [state_hash(one) for one in old] == before
