"""Whole predictions: the published code's numbers, its plain form, and what a default corrects."""

import pytest
import torch
from helpers.hypernet_reference import (
    KINDS,
    Golden,
    config,
    hypernet,
    published,
    task_of,
    torchvision_vit,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import weightinit as wi
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.graph import graph_of
from weightinit.hypernet.network import GraphHyperNetwork, _entries
from weightinit.hypernet.predict import Prediction

GHN3 = {"T": (64, 3, 8), "S": (128, 5, 16), "L": (256, 12, 16), "XL": (384, 24, 16)}
SIZES = {
    **{
        f"GHN-3-{name}": (
            HyperConfig("ghn3", hid=hid, layers=n, heads=h, max_shape=(hid, hid, 16)),
            {"T": 6_906_632, "S": 35_810_368, "L": 214_668_960, "XL": 654_365_184}[name],
        )
        for name, (hid, n, h) in GHN3.items()
    },
    "LoGAH": (HyperConfig(), 21_412_794),
    "LoGAH-Tiny": (HyperConfig(hid=64, rank=32, layers=3, heads=8), 2_540_380),
    "LoGAH, hid 256, r 128": (HyperConfig(hid=256, rank=128), 78_231_892),
    "LoGAH, hid 256, r 256": (HyperConfig(hid=256, rank=256, layers=12), 289_423_316),
    "TAL": (HyperConfig("tal", task_dim=768, dead_layer=False), 22_388_924),
    "PITH": (HyperConfig.pith(), 50_528_133),
    "PITH, tasks": (HyperConfig.pith(task_dim=768), 51_512_453),
    "PITH, dual": (HyperConfig.pith(expansion="none"), 41_599_233),
    "PITH, shared": (HyperConfig.pith(expansion="none", pathway="shared"), 24_402_873),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_parameter_counts(name):
    own, count = SIZES[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in GraphHyperNetwork(own).parameters()) == count


def test_the_papers_full_design_is_larger():
    """Progressive expansion on both paths, and factors of their own for P and Q."""
    full = HyperConfig.pith(expansion="both", separate=True)
    with torch.device("meta"):
        count = sum(p.numel() for p in GraphHyperNetwork(full).parameters())
        plain = sum(p.numel() for p in GraphHyperNetwork(HyperConfig.pith()).parameters())
    last = 180 * 91 + 360 * 181 + 32768 * 361
    assert count == plain - (90 + 1) * 32768 + 2 * last + 90 * 91


@pytest.mark.parametrize("kind", KINDS)
def test_published_predictions(golden, kind):
    case = Golden(golden, kind)
    with torch.no_grad():
        found = Prediction(
            case.net, wi.anatomy(case.target), task=case.task, ancestor=case.ancestor, faithful=True
        ).parameters()
    predicted = case.part("pred")
    assert found.keys() >= predicted.keys() - {"class_token"}
    for name, value in predicted.items():
        if name == "class_token":  # the published graphs have no node for it
            continue
        own, value = (x[:, 1:] if "pos" in name else x for x in (found[name], value))
        torch.testing.assert_close(own, value, atol=1e-5, rtol=0, msg=name)


#: Clipped in rows, in columns, in both, in none; of PITH only what its code does not crash on.
CASES = [
    ("ghn3", {}, {}),
    ("ghn3", {}, {"classes": 37, "width": 96}),
    ("ghn3", {"max_shape": (24, 40, 3)}, {"patch": 4, "size": 32}),
    (
        "ghn3",
        {"max_shape": (24, 40, 16), "num_classes": 5},
        {"classes": 3, "size": 160, "patch": 8},
    ),
    ("logah", {}, {"width": 96}),
    ("logah", {"max_shape": (100, 256, 16)}, {"width": 60, "mlp": 300}),
    ("logah", {"max_shape": (256, 70, 16)}, {"width": 96, "mlp": 100}),
    ("logah", {"max_shape": (48, 32, 16), "num_classes": 6}, {"width": 96, "classes": 100}),
    ("logah", {"rank": 7, "max_ck": 1031}, {"patch": 8}),
    ("tal", {"max_shape": (80, 64, 16)}, {"width": 96, "classes": 7, "patch": 8}),
    ("tal", {"max_ck": 1100, "dead_layer": False}, {"classes": 4}),
    ("pith", {}, {}),
    ("pith", {"max_shape": (200, 300, 16)}, {}),
    ("pith", {"max_shape": (512, 200, 16), "expansion": "none"}, {"width": 48, "mlp": 201}),
    ("pith", {"pathway": "shared", "expansion": "none"}, {"classes": 100}),
    ("pith", {"separate": True, "expansion": "both"}, {"depth": 3}),
    ("pith", {"separate": True, "pathway": "shared", "expansion": "both"}, {}),
]


@pytest.mark.parametrize(("kind", "changes", "target"), CASES)
def test_it_is_the_published_codes_plain_form(kind, changes, target):
    net, model = hypernet(kind, **changes), torchvision_vit(**target)
    size, patch = target.get("size", 64), target.get("patch", 16)
    old = torchvision_vit(4, 112, size=size, patch=patch, seed=1) if kind == "pith" else None
    options = {"task": task_of(net)}
    with torch.no_grad():
        plain = published.predict(
            net,
            published.trace(model, size),
            dict(model.named_parameters()),
            ancestor=None if old is None else dict(old.named_parameters()),
            **options,
        )
        found = Prediction(
            net,
            wi.anatomy(model),
            ancestor=None if old is None else Ancestor.open(old),
            faithful=True,
            **options,
        ).parameters()
    assert found.keys() - plain.keys() == {"class_token"}
    for name, value in plain.items():
        own = found[name][:, 1:] if "pos" in name else found[name]
        torch.testing.assert_close(own, value, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["logah", "tal"])
def test_softmax_nodes_change_the_embeddings_alone(kind):
    """Graphs of torch 1: the same parameters have nodes, and others' neighbours differ."""
    net, seen = hypernet(kind), wi.anatomy(torchvision_vit())
    plain, softmax = (
        net(graph_of(seen, softmax=on), task=task_of(net), faithful=True) for on in (False, True)
    )
    assert plain.keys() == softmax.keys()
    key = (0, "attn.proj.weight")
    assert plain[key].shape == softmax[key].shape and not torch.equal(plain[key], softmax[key])


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 5000),
    most=st.sampled_from([32, 48, 256, 2048, 4096]),
    kind=st.sampled_from(["logah", "tal", "pith"]),
)
def test_vectors_are_rounded_as_published(size, most, kind):
    """Where the bias begins in what is decoded for a norm."""
    own = config(kind, max_shape=(most, most, 11))
    with torch.device("meta"):
        rounded, _ = published.keyed((size,), False, GraphHyperNetwork(own))
    assert _entries(size, own, True) == rounded
    assert _entries(size, own, False) == (rounded if size <= most else size)


@pytest.mark.parametrize("kind", ["logah", "tal"])
def test_by_default_nothing_is_tiled(kind):
    """Beyond max_shape in one axis, rows are decoded where the released code repeats them."""
    net = hypernet(kind, max_shape=(128, 256, 16))
    seen = wi.anatomy(torchvision_vit(width=64))
    key = (0, "mlp.fc1.weight")
    with torch.no_grad():
        tiled, whole = (
            net(graph_of(seen), task=task_of(net), faithful=on)[key] for on in (True, False)
        )
    assert torch.equal(tiled[:128], tiled[128:])
    assert not torch.allclose(whole[:128], whole[128:])
    torch.testing.assert_close(whole[:128], tiled[:128])


def test_both_axes_beyond_max_shape():
    net = hypernet("logah", max_shape=(48, 48, 16))
    with pytest.raises(ProjectionError, match=r"192x64 .* both axes, 48x48: use a smaller target"):
        net(graph_of(wi.anatomy(torchvision_vit())))


def test_tasks_that_do_not_fit():
    graph = graph_of(wi.anatomy(torchvision_vit(1, 32)))
    with pytest.raises(ProjectionError, match=r"needs a task: pass task=.*12 numbers"):
        hypernet("tal")(graph)
    with pytest.raises(ProjectionError, match=r"shape \(13,\): use one of \(12,\)"):
        hypernet("tal")(graph, task=torch.ones(13))
    with pytest.raises(ProjectionError, match="takes none"):
        hypernet("logah")(graph, task=torch.ones(12))


def test_parts_have_canonical_sizes():
    seen = wi.anatomy(torchvision_vit(2, 32))
    found = hypernet("logah")(graph_of(seen))
    pieces = {(i, r): p.size for i, block in enumerate(seen.blocks) for r, p in block.items()}
    pieces |= {(-1, role): piece.size for role, piece in seen.outside.items()}
    assert pieces.keys() - found.keys() == {(-1, "token.cls")}
    for key, value in found.items():
        size = (16, 32) if key == (-1, "pos") else pieces[key]
        assert tuple(value.shape) == size and value.dtype == torch.float32


@pytest.mark.parametrize("changes", [{}, {"pathway": "shared"}, {"separate": True}])
def test_gradients_reach_every_parameter_but_the_dead(changes):
    old = Ancestor.open(torchvision_vit(4, 112, seed=1))
    for kind in KINDS if not changes else ["pith"]:
        net = hypernet(kind, **changes, **({"task_dim": 12} if kind == "pith" else {}))
        weights = Prediction(
            net,
            wi.anatomy(torchvision_vit(2, 60)),
            task=task_of(net),
            ancestor=old if kind == "pith" else None,
        ).parameters()
        sum(value.square().sum() for value in weights.values() if value.requires_grad).backward()
        without = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
        dead = {n for n in without if ".l1" in n or n.startswith(("decoder_1d", "bias_class"))}
        if kind == "ghn3":
            dead -= {n for n in dead if "1d" in n or "class" in n}
        assert without == dead
        assert not net.config.dead_layer or kind == "ghn3" or "decoder.l1.weight" in dead


def test_gradients_are_those_of_finite_differences():
    net = hypernet("pith", hid=8, rank=2, max_ck=4096, start="rule").double()
    old = Ancestor.open(torchvision_vit(2, 24, heads=3, seed=1).double())
    seen = wi.anatomy(torchvision_vit(2, 16, heads=2).double())
    probe = {n: torch.randn_like(p) for n, p in net.named_parameters()}

    def loss():
        values = Prediction(net, seen, ancestor=old).parameters().values()
        return sum(value.double().square().sum() for value in values)

    loss().backward()
    grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    slope = sum((grad * probe[n]).sum() for n, grad in grads.items())
    steepness = sum(grad.square().sum() for grad in grads.values()).sqrt()
    values = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):  # so small that hardly a ReLU changes sides
            for name, parameter in net.named_parameters():
                parameter += step * probe[name]
            values.append(loss())
    assert ((values[0] - values[1]) / 2e-6).item() == pytest.approx(
        slope.item(), abs=1e-4 * steepness.item()
    )
