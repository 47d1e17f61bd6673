import pytest
import torch
from helpers.models import vit
from helpers.training import hypernet
from torch.nn import functional

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import WeightInitError
from weightinit.hypernet.samplers import micro
from weightinit.training.data import load_data
from weightinit.training.hypernet import MetaConfig, guidance, meta_loss
from weightinit.training.targets import GUIDE, Targets


@pytest.fixture(scope="module")
def batch():
    data = load_data("digits")
    labels = functional.one_hot(data.train.labels[:12], 10).float()
    return data, data.normalise(data.train.images[:12]), labels


def test_the_guide_is_equation_4():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = ((x / 3).softmax(-1) for x in (a, b))
    forward, backward = ((x * (x / y).log()).sum(-1).mean() for x, y in ((p, q), (q, p)))
    assert float(guidance(a, b)) == pytest.approx(float(forward), rel=1e-5)
    # the released code: the sum over the batch, times T^2, over the number of logits of 1000
    published = backward * 5 * 9 / (5 * 1000)
    assert float(guidance(a, b, faithful=True)) == pytest.approx(float(published), rel=1e-5)
    assert guidance(a, b, 1e6) < 1e-6


def test_loss_by_hand(batch):
    data, images, labels = batch
    targets = Targets(hypernet())
    target = targets(micro(48, 3, image_size=8), data)
    config = MetaConfig(steps=1, label_smoothing=0.0)
    found = meta_loss(targets, target, data, images, labels, None, None, config)
    weights = targets.predict(target).parameters()
    model = vit(embed_dim=48, depth=3, num_heads=3, num_classes=10, patch_size=2)
    model.load_state_dict(weights)
    ce = functional.cross_entropy(model(images), labels)
    norms = sum(w.norm() for w in weights.values() if w.requires_grad)
    assert found.item() == pytest.approx((ce + 3e-5 * norms).item(), rel=1e-5)


def test_tals_first_stage_by_hand(batch):
    data, images, labels = batch
    net = hypernet()
    targets = Targets(net, guide=16)
    target = targets(micro(48, 3, image_size=8), data)
    assert sum(node.roles == (GUIDE,) for node in target.graph.nodes) == 1
    wanted = torch.randn(12, 16)
    config = MetaConfig(steps=1, guide=0.2, penalty=0.0)
    found = meta_loss(targets, target, data, images, labels, None, wanted, config)
    prediction = targets.predict(target)
    model = vit(embed_dim=48, depth=3, num_heads=3, num_classes=10, patch_size=2)
    model.load_state_dict(prediction.parameters())
    feature = model.forward_head(model.forward_features(images), pre_logits=True)
    matrix = prediction.weights[-1, GUIDE]
    assert matrix.shape == (16, 48)
    kl = guidance(feature @ matrix.T, wanted)
    expected = 0.2 * kl + 0.8 * functional.cross_entropy(model(images), labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    alone = MetaConfig(steps=1, guide=1.0, penalty=0.0)
    meta_loss(targets, target, data, images, labels, None, wanted, alone).backward()
    assert net.decoder.l2.weight.grad.norm() > 0, "M is predicted, so the guide trains"


@pytest.mark.parametrize("kind", ["ghn3", "logah", "tal", "pith"])
def test_gradients_reach_the_hypernetwork(batch, kind):
    data, images, labels = batch
    changes = {"tal": {"task_dim": 5}, "ghn3": {"rank": 0, "max_shape": (16, 16, 8)}}.get(kind, {})
    net = hypernet(kind, **changes)
    targets = Targets(net, Ancestor.open(vit(num_classes=10)) if kind == "pith" else None)
    target = targets(micro(48, 3, image_size=8), data)
    task = torch.randn(5) if kind == "tal" else None
    meta_loss(targets, target, data, images, labels, task, None, MetaConfig(steps=1)).backward()
    for name in ("embed.weight", "gnn.0.attn.to_qkv.weight", "gnn.1.ff.net.0.weight", "ln.weight"):
        assert net.get_parameter(name).grad.norm() > 0, name


def test_bf16_is_near_fp32(batch):
    data, images, labels = batch
    targets = Targets(hypernet())
    target = targets(micro(48, 3, image_size=8), data)
    full, half = (
        meta_loss(
            targets, target, data, images, labels, None, None, MetaConfig(1, precision=precision)
        )
        for precision in ("no", "bf16")
    )
    assert half.dtype == torch.float32 and half.item() == pytest.approx(full.item(), rel=0.02)


@pytest.mark.parametrize(
    "changes",
    [{"loss": "soft"}, {"architectures": 0}, {"guide": 2.0}, {"guide_temperature": 0.0}],
)
def test_configs_that_make_no_sense(changes):
    with pytest.raises(WeightInitError, match="use"):
        MetaConfig(steps=1, **changes)
