import warnings
import weakref
from functools import partial

import pytest
import timm
import torch
from helpers.inherit import fill, logits, randomise, small_vit
from helpers.models import draw, state_hash
from timm.layers import PatchEmbed
from torch import nn
from torchvision.models import VisionTransformer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

import weightinit as wi
from weightinit.errors import ProjectionError
from weightinit.methods.activation import pace
from weightinit.methods.activation.method import ActivationAware
from weightinit.methods.halfway import ShrinkThenGrow
from weightinit.methods.selection import WeightSelection

IMAGES = [draw(16, 3, 16, 16, seed=seed) for seed in range(4)]
FLOATS = [images.float() for images in IMAGES]


def scrambled(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(9))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.1},
        {"qkv_bias": False},
        {"qk_norm": True},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 2, "fc_norm": True},
        {"num_classes": 0},
        {"class_token": False, "global_pool": "map"},
        {"pre_norm": True},
    ],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_at_full_size_the_function_is_the_ancestors(options):
    ancestor, model = small_vit(**options).double(), scrambled(small_vit(**options).double())
    report = fill(model, wi.Ancestor.open(ancestor), ActivationAware(), calibration=IMAGES)
    torch.testing.assert_close(logits(model), logits(ancestor), rtol=0, atol=1e-10)
    assert report.counts["fresh"] == 0


def test_the_ancestors_stream_is_held_once():
    ancestor, given, held = small_vit(depth=4), [], []
    batches = [draw(4, 3, 16, 16, seed=seed).float() for seed in range(20)]

    def count(_, args):
        given.append(weakref.ref(args[0]))
        held.append(sum(x() is not None for x in given))

    for block in ancestor.blocks:
        block.register_forward_pre_hook(count)
    wi.project_from(ancestor, small_vit(16, 2), method=ActivationAware(), calibration=batches)
    # Before the head there is the target's too. What a block is computing comes on top.
    assert max(held[: -2 * len(batches) * 4]) < len(batches) + 6
    assert max(held) < 2 * len(batches) + 6


def test_values_have_the_dtype_of_the_ancestor():
    ancestor, model = small_vit(depth=4), small_vit(16, 2)
    for dtype in (torch.float32, torch.float64):
        source = wi.Ancestor.open(ancestor.to(dtype))
        planned = ActivationAware().plan(source, wi.anatomy(model), calibration=IMAGES)
        out = torch.empty(model.blocks[1].mlp.fc1.weight.shape, dtype=torch.float64)
        piece = wi.anatomy(model).blocks[1]["mlp.fc1.weight"]
        planned.parts[piece].fill(out)
        assert torch.equal(out, out.to(dtype).double())
        assert dtype == torch.float32 or not torch.equal(out, out.float().double())


@pytest.mark.parametrize(
    ("old", "new"),
    [({"init_values": 0.1}, {}), ({}, {"init_values": 0.1}), ({"qkv_bias": False}, {})],
)
def test_layer_scales_and_biases_may_differ(old, new):
    ancestor, model = small_vit(**old).double(), scrambled(small_vit(**new).double())
    exact = ActivationAware(paced=False)  # a larger stream would feel less of the norms' eps
    wi.project_from(ancestor, model, method=exact, calibration=IMAGES)
    torch.testing.assert_close(logits(model), logits(ancestor), rtol=0, atol=1e-10)


SIZE = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_classes": 5}
OTHERS = {
    "torchvision": lambda: VisionTransformer(num_heads=2, hidden_dim=16, mlp_dim=32, **SIZE),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2,
                   bos_token_id=0, eos_token_id=0)
    ),
    # Its MLP is no module of its own.
    "transformers": lambda: ViTForImageClassification(
        ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2,
                  num_attention_heads=2, intermediate_size=32, num_labels=5)
    ),
    "eva02": lambda: timm.create_model(
        "eva02_tiny_patch14_224", img_size=16, patch_size=8, embed_dim=16, num_heads=2, depth=2,
        num_classes=5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_keep_their_function(name):
    ancestor = randomise(OTHERS[name]()).double()
    model = scrambled(OTHERS[name]().double()).eval()
    tokens = torch.randint(0, 20, (8, 8), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": tokens}] if name == "gpt2" else IMAGES
    wi.project_from(ancestor, model, method="activation", calibration=batches)
    given = tokens if name == "gpt2" else IMAGES[0]
    with torch.no_grad():
        found = [getattr(out, "logits", out) for out in (model(given), ancestor(given))]
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)


def narrow_stream(rank):
    """An ancestor that writes into few directions of its stream, with one silent head a block."""
    model = small_vit(24, 3).double()
    basis = torch.linalg.qr(draw(24, rank, seed=5)).Q
    basis = torch.linalg.qr(basis - basis.mean(0)).Q
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight[:, 8:16] = 0
            for matrix in (block.attn.proj, block.mlp.fc2):
                matrix.weight.copy_(basis @ basis.T @ matrix.weight)
                matrix.bias.copy_(basis @ basis.T @ matrix.bias)
        patch = model.patch_embed.proj
        patch.weight.copy_(torch.einsum("ij,jcpq->icpq", basis @ basis.T, patch.weight))
        patch.bias.copy_(basis @ basis.T @ patch.bias + 0.7)
        for tokens in (model.pos_embed, model.cls_token):
            tokens.copy_(tokens @ basis @ basis.T)
    return model


def test_nothing_is_lost_where_the_stream_has_room():
    ancestor = narrow_stream(15)
    model = small_vit(16, 2, mlp_ratio=6).double()
    exact = ActivationAware(paced=False)  # a larger stream would feel less of the norms' eps
    wi.project_from(ancestor, model, method=exact, calibration=IMAGES)
    torch.testing.assert_close(logits(model), logits(ancestor), rtol=0, atol=1e-10)
    smaller = small_vit(8, 1).double()
    wi.project_from(ancestor, smaller, method="activation", calibration=IMAGES)
    assert (logits(smaller) - logits(ancestor)).abs().max() > 1e-2


@torch.no_grad()
def loss(model, ancestor):
    """Error on images that were not seen, relative to the variance of the outputs."""
    images = draw(64, 3, 16, 16, seed=99).to(next(model.parameters()))
    said, wanted = model.eval()(images), ancestor(images)
    return float((said - wanted).square().mean() / wanted.var(0).mean())


@pytest.mark.parametrize("size", [(24, 3, 2), (16, 2, 4), (16, 2, 2)])
def test_smaller_targets_do_what_their_ancestor_does(size):
    ancestor = small_vit(24, 3, 4)
    errors = []
    for method in (ActivationAware(), WeightSelection(depth="uniform")):
        model = small_vit(*size)
        wi.project_from(ancestor, model, method=method, calibration=FLOATS)
        errors.append(loss(model, ancestor))
    # Nearer than any constant, though the images are noise and the weights are random.
    assert errors[0] < 1
    assert errors[0] < 0.2 * errors[1]


def test_patches_images_and_classes_may_differ():
    ancestor = small_vit(24, 3)
    model = small_vit(16, 2, img_size=32, patch_size=4, num_classes=7)
    report = wi.plan_projection(ancestor, model, method="activation", calibration=FLOATS)
    assert report.report().counts["fresh"] == 2
    report.commit()
    assert torch.equal(model.norm.weight, torch.ones(16))
    assert logits(model).shape == (3, 7)


def test_batches_come_in_any_form_and_the_result_is_the_same():
    found = []
    for batches in (
        FLOATS,
        [(images, torch.zeros(16)) for images in FLOATS],
        iter([{"x": images, "labels": torch.zeros(16)} for images in FLOATS]),
    ):
        model = small_vit(16, 2, 1)
        wi.project_from(small_vit(24, 3), model, method="activation", calibration=batches)
        found.append(model.state_dict())
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_the_ancestor_is_not_changed_and_the_target_may_be_on_meta():
    ancestor = small_vit(24, 3).train()
    before, drawn = state_hash(ancestor), torch.get_rng_state()
    with torch.device("meta"):
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, num_heads=2, depth=1,
            num_classes=5,
        )  # fmt: skip
    wi.project_from(ancestor, model, method=wi.ActivationAware(), calibration=FLOATS)
    assert state_hash(ancestor) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    other = small_vit(16, 2, 1)
    wi.project_from(ancestor, other, method="activation", calibration=FLOATS)
    torch.testing.assert_close(logits(model), logits(other), rtol=0, atol=0)


def branch_norm():
    """A ViT with a norm on each branch."""
    return timm.create_model(
        "vit_relpos_small_patch16_rpn_224", img_size=16, patch_size=8, embed_dim=16, num_heads=2,
        depth=2, num_classes=5,
    )  # fmt: skip


NAN = torch.full((16, 3, 16, 16), float("nan"))


@pytest.mark.parametrize(
    ("ancestor", "model", "batches", "words"),
    [
        (small_vit, small_vit, None, "pass a few unlabelled batches"),
        (small_vit, small_vit, [], "holds no batches"),
        (small_vit, small_vit, [NAN], "not finite: check the batches"),
        (small_vit, small_vit, [FLOATS[0][:2]], r"holds 10 tokens.* 24 channels: pass more"),
        (small_vit, small_vit, [torch.zeros(16, 1, 16, 16)], "does not run on calibration batch 0"),
        (small_vit, lambda: small_vit(depth=3), FLOATS, "depth 2 -> 3: use method='auto'"),
        (small_vit, lambda: small_vit(12), FLOATS, "head dim .* 8 -> 4 differs: keep"),
        (branch_norm, branch_norm, FLOATS, "norms after attention and MLP; or use method"),
        (
            OTHERS["gpt2"],
            lambda: GPT2LMHeadModel(
                GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=1)
            ),
            FLOATS,
            "tied embed.* keep embed_dim = 16",
        ),
    ],
)
def test_what_does_not_fit_raises_and_leaves_the_target_alone(ancestor, model, batches, words):
    model = model()
    before = state_hash(model)
    with pytest.raises(ProjectionError, match=words):
        wi.project_from(ancestor(), model, method="activation", calibration=batches)
    assert state_hash(model) == before


@pytest.mark.parametrize("ridge", [0, -1.0, float("nan")])
def test_a_ridge_that_is_not_positive_raises(ridge):
    with pytest.raises(ProjectionError, match="pass a positive number"):
        ActivationAware(ridge=ridge)


def test_an_attention_pool_reads_the_norm_that_it_was_trained_with():
    """In depth alone the pool's weights and its norm stay as they are."""
    pooled = {"class_token": False, "global_pool": "map"}
    ancestor = small_vit(depth=4, **pooled).double()
    model = scrambled(small_vit(depth=3, **pooled).double())
    fill(model, wi.Ancestor.open(ancestor), ActivationAware(), calibration=IMAGES)
    for name in (
        "norm.weight",
        "norm.bias",
        "attn_pool.q.weight",
        "attn_pool.kv.weight",
        "head.weight",
    ):
        assert torch.equal(model.get_parameter(name), ancestor.get_parameter(name)), name
    selected = scrambled(small_vit(depth=3, **pooled).double())
    fill(selected, ancestor, WeightSelection(depth="first_last"))
    wanted = logits(ancestor)
    assert (logits(model) - wanted).norm() < (logits(selected) - wanted).norm()


@pytest.mark.parametrize("options", [{}, {"norm_layer": "rmsnorm"}, {"reg_tokens": 2}])
def test_a_norm_before_the_blocks_follows(options):
    """CLIP's towers narrow by the fit, which is far nearer than a selection."""
    ancestor = small_vit(32, 4, 3, pre_norm=True, **options).double()
    base = draw(4, 3, 16, 16, seed=5)
    batches = [torch.einsum("nk,kchw->nchw", draw(32, 4, seed=s), base) for s in range(8)]
    found = {}
    for name in ("activation", "weight_selection"):
        model = scrambled(small_vit(24, 3, 3, pre_norm=True, **options).double())
        wi.project_from(ancestor, model, method=name, calibration=batches)
        with torch.no_grad():
            wanted, given = ancestor(batches[0]), model.eval()(batches[0])
        found[name] = float((given - wanted).norm() / (wanted - wanted.mean(0)).norm())
    assert found["activation"] < 0.5 * found["weight_selection"], found


def test_the_ancestors_norm_needs_its_place_in_the_target():
    ancestor, model = small_vit(32, 4, 2, pre_norm=True), small_vit(24, 3, 2)
    with pytest.raises(ProjectionError, match=r"norm_pre\.weight, norm_pre\.bias cannot follow"):
        fill(model, wi.Ancestor.open(ancestor), ActivationAware(), calibration=FLOATS)


def test_what_is_asked_of_training_is_said_and_no_bar_is_drawn(capsys):
    ancestor, model = small_vit(24, 3), small_vit(16, 2)
    report = fill(model, wi.Ancestor.open(ancestor), ActivationAware(), calibration=FLOATS)
    assert "AdamW at about the learning rate of random weights, 3e-4 to 1e-3" in report.notes[-1]
    assert capsys.readouterr().err == ""


SIZES = [({}, (16, 2)), ({}, (24, 3)), ({"pre_norm": True}, (16, 2)), ({"fc_norm": True}, (16, 2))]


@pytest.mark.parametrize(("options", "size"), SIZES)
def test_paced_weights_are_larger_and_compute_the_same(monkeypatch, options, size):
    """What writes is larger by one factor, and what reads a norm by what its gain is smaller."""
    for name, value in (("RATE", 0.05), ("USUAL", 0.9)):
        monkeypatch.setattr(pace, name, value)
    ancestor = small_vit(24, 3, 3, **options).double()
    found = []
    for paced in (False, True):
        model = scrambled(small_vit(*size, 2, **options).double())
        method = ActivationAware(paced=paced)
        fill(model, wi.Ancestor.open(ancestor), method, calibration=IMAGES)
        found.append(model)
    plain, larger = found
    torch.testing.assert_close(logits(larger), logits(plain), rtol=0, atol=2e-3)
    before, after = (model.state_dict() for model in found)
    for name in ("blocks.0.mlp.fc2.weight", "blocks.1.mlp.fc1.weight"):
        factor = after[name] / before[name]
        assert factor.min() > 1.2 and float(factor.max()) == pytest.approx(float(factor.min()))
        same = ["blocks.1.attn.proj.bias"]
        if "fc1" in name:
            same = ["blocks.0.attn.qkv.weight"]
            torch.testing.assert_close(
                after["blocks.0.norm1.weight"] * factor[0, 0], before["blocks.0.norm1.weight"]
            )
        elif not options.get("pre_norm"):  # a norm before the blocks takes the factor instead
            same += ["pos_embed", "cls_token", "patch_embed.proj.weight"]
        for other in same:
            torch.testing.assert_close(after[other], before[other] * factor[0, 0])


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 2), (24, 3)])
def test_a_step_of_adamw_changes_what_a_stem_writes_by_little(size):
    ancestor, model = small_vit(24, 3, 3), small_vit(*size, 2)
    fill(model, wi.Ancestor.open(ancestor), ActivationAware(), calibration=FLOATS)
    images = torch.cat(FLOATS)
    begin = model.pos_drop(model._pos_embed(model.patch_embed(images)))
    moved = pace.RATE * images.unfold(2, 4, 4).unfold(3, 4, 4).abs().sum((1, 4, 5)).mean()
    assert float(moved / begin.square().mean().sqrt()) < 1.2 * pace.CHANGE


def test_a_stream_of_huge_values_keeps_room_for_half_precision():
    ancestor, model = small_vit(24, 3, 3), small_vit(16, 2, 2)
    with torch.no_grad():
        ancestor.blocks[1].mlp.fc2.bias[3] = 1000.0
    fill(model, wi.Ancestor.open(ancestor), ActivationAware(), calibration=FLOATS)
    seen = []
    hook = model.blocks[-1].register_forward_hook(lambda *a: seen.append(a[2].abs().max()))
    with hook, torch.no_grad():
        model(torch.cat(FLOATS))
    assert float(max(seen)) < 2 * pace.ROOM


def test_a_target_of_the_ancestors_size_keeps_its_weights_size():
    ancestor, model = small_vit(24, 3, 2).double(), scrambled(small_vit(24, 3, 2).double())
    fill(model, wi.Ancestor.open(ancestor), ActivationAware(), calibration=IMAGES)
    torch.testing.assert_close(model.pos_embed, ancestor.pos_embed)
    ones = torch.ones_like(model.blocks[1].norm1.weight)
    torch.testing.assert_close(model.blocks[1].norm1.weight, ones)


def test_one_image_makes_no_large_weights():
    """One sample tells a head nothing: it keeps what the ancestor's is."""
    size = {"img_size": 64, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ancestor, model = (
            timm.create_model(
                "vit_tiny_patch16_224",
                embed_dim=16 * h,
                depth=n,
                num_heads=h,
                num_classes=7,
                **size,
            )
            for h, n in ((4, 3), (2, 2))
        )
    wi.project_from(ancestor, model, calibration=[draw(1, 3, 64, 64, seed=1).float()])
    assert float(model.head.weight.detach().abs().max()) < 1


def test_a_larger_stream_is_said():
    ancestor, model = small_vit(24, 3, 2), small_vit(16, 2, 2)
    report = fill(model, wi.Ancestor.open(ancestor), ActivationAware(), calibration=FLOATS)
    assert any("norms undo that" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "method"), [({"final_norm": False}, {}), ({}, {"paced": False})]
)
def test_a_stream_that_keeps_its_size_asks_for_a_low_rate(options, method):
    ancestor, model = small_vit(24, 3, 2), small_vit(16, 2, 2, **options)
    method = ActivationAware(**method)
    report = fill(model, wi.Ancestor.open(ancestor), method, calibration=FLOATS)
    assert not any("norms undo that" in note for note in report.notes)
    assert "low learning rate: start with about 2e-5 to 1e-4" in report.notes[-1]


class Sines(timm.models.vision_transformer.VisionTransformer):
    """A ViT whose positions are a buffer."""

    def __init__(self, **options):
        super().__init__(**options)
        places = torch.arange(17)[:, None] * torch.arange(1, self.embed_dim + 1) / 7
        del self.pos_embed
        self.register_buffer("pos_embed", places.sin()[None])


class Aux(timm.models.vision_transformer.VisionTransformer):
    """A ViT of which a head reads the stream without a norm."""

    def __init__(self, **options):
        super().__init__(**options)
        self.aux = torch.nn.Linear(self.embed_dim, 5)

    def forward(self, x):
        seen = []
        with self.blocks[-1].register_forward_hook(lambda *a: seen.append(a[2])):
            return super().forward(x) + self.aux(seen[0][:, 0])


class Adapted(timm.models.vision_transformer.VisionTransformer):
    """A ViT of which a layer of its own reads a norm of each block."""

    def __init__(self, **options):
        super().__init__(**options)
        for block in self.blocks:
            block.mlp.adapter = torch.nn.Linear(self.embed_dim, self.embed_dim)
            block.mlp.register_forward_hook(lambda mlp, x, out: out + mlp.adapter(x[0]))


def vit(depth, width=24, kind=timm.models.vision_transformer.VisionTransformer, **options):
    size = {"img_size": 16, "patch_size": 4, "num_classes": 5, "depth": depth}
    with torch.random.fork_rng():
        torch.manual_seed(depth)
        model = kind(embed_dim=width, num_heads=width // 8, **size, **options)
    return resized(randomise(model, seed=depth), 0.3)


@torch.no_grad()
def resized(model, factor):
    """Make all weights larger or smaller but those of norms."""
    for name, parameter in model.named_parameters():
        if "norm" not in name and "ln_" not in name:
            parameter.mul_(factor)
    return model


NORMED = {"embed_layer": partial(PatchEmbed, norm_layer=torch.nn.LayerNorm)}
SEEN = [
    ({"global_pool": "map", "fc_norm": True}, {"global_pool": "map", "fc_norm": True}, 24, {}),
    ({}, {"pre_norm": True}, 16, {}),
    ({}, NORMED, 24, {}),
    ({}, {"reg_tokens": 2}, 16, {}),
    ({"pos_embed": "none"}, {}, 16, {}),
    ({"kind": Sines}, {"kind": Sines}, 24, {}),
    ({"kind": Aux}, {"kind": Aux}, 24, {"unexplained": "keep"}),
    ({}, {"kind": Adapted}, 16, {"unexplained": "keep"}),
]


@torch.no_grad()
def gap(ancestor, build, methods, **options):
    """How far apart two methods' targets are, in features or outputs, relative to their size."""
    found = []
    for method in methods:
        model = build()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the two do not share
            wi.project_from(ancestor, model, method=method, **options)
        images = torch.cat(FLOATS)
        found.append((model.eval().forward_features(images), model(images)))
    return max(float((x - y).norm() / x.norm()) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize(("old", "new", "width", "options"), SEEN)
def test_a_stream_that_more_than_norms_see_keeps_its_size(monkeypatch, old, new, width, options):
    """Paced or not, the target computes the same."""
    monkeypatch.setattr(pace, "USUAL", 0.9)  # so that all want a larger stream
    methods = [ActivationAware(paced=paced) for paced in (False, True)]
    options = {"calibration": FLOATS, **options}
    assert gap(vit(4, **old), lambda: vit(2, width, **new), methods, **options) < 1e-3


#: What a target may keep, by name, by role, and by the start of one.
KEPT = ["head", "pos", "pos_embed", "patch", "patch_embed.proj.bias", "cls_token", "norm"]
KEPT += ["norm1", "blocks.0.norm1", "blocks.0.attn.qkv", "mlp.fc2.bias", "blocks.1", "blocks"]


@pytest.mark.parametrize(
    ("keep", "options"),
    [*((x, {}) for x in KEPT), ("norm_pre", {"pre_norm": True}), ("fc_norm", {"fc_norm": True})],
)
def test_nothing_is_scaled_beside_what_is_kept(monkeypatch, keep, options):
    monkeypatch.setattr(pace, "USUAL", 0.9)
    methods = [ActivationAware(paced=False), "auto"]
    ancestor = vit(4, **options)
    assert (
        gap(ancestor, lambda: vit(2, 16, **options), methods, calibration=FLOATS, keep=keep) < 1e-3
    )


@pytest.mark.parametrize("keep", ["head", "pos", "patch", "norm", "norm1"])
def test_nothing_is_scaled_beside_what_is_kept_without_calibration(monkeypatch, keep):
    monkeypatch.setattr(pace, "USUAL", 0.9)
    methods = [ActivationAware(paced=False), "auto"]
    options = {"calibration": "generated", "keep": keep}
    assert gap(vit(4), lambda: vit(2, 16), methods, **options) < 1e-3
    plans = [
        wi.plan_projection(vit(4), vit(2, 16), calibration=how, keep=keep).commit()
        for how in ("generated", None)
    ]
    assert all(map(torch.equal, plans[0].parameters(), plans[1].parameters()))


@pytest.mark.parametrize("keep", ["blocks.0.norm1", "norm"])
def test_nothing_is_scaled_beside_what_a_target_that_also_grows_keeps(monkeypatch, keep):
    monkeypatch.setattr(pace, "USUAL", 0.9)
    methods = [ShrinkThenGrow(ActivationAware(paced=paced)) for paced in (False, True)]
    options = {"calibration": FLOATS, "keep": keep}
    assert gap(vit(2), lambda: vit(3, 16), methods, **options) < 1e-3


@torch.no_grad()
def test_a_head_that_is_the_table_of_words_keeps_its_logits():
    def gpt(layers):
        size = {"vocab_size": 60, "n_positions": 16, "n_embd": 48, "n_head": 3}
        return resized(GPT2LMHeadModel(GPT2Config(n_layer=layers, use_cache=False, **size)), 1.5)

    ids = [draw(4, 12, seed=n).abs().mul(20).long().clamp(max=59) for n in range(12)]
    ancestor, found = gpt(4).eval(), []
    for paced in (False, True):
        model = gpt(2)
        method = ActivationAware(paced=paced)
        wi.project_from(ancestor, model, method=method, calibration=ids)
        found.append(model.eval()(ids[0]).logits)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_tokens_that_a_norms_eps_rules_keep_their_size():
    ancestor, found = resized(vit(4), 1e-3), []
    for paced in (False, True):
        model = vit(2, 16)
        method = ActivationAware(paced=paced)
        wi.project_from(ancestor, model, method=method, calibration=FLOATS)
        found.append(model.eval().forward_features(torch.cat(FLOATS)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("size", "larger"), [(1.0, True), (20.0, False)])
def test_weights_that_are_large_already_take_the_usual_rate(size, larger):
    ancestor = wi.Ancestor.open(resized(vit(4), size))
    report = fill(vit(2, 16), ancestor, ActivationAware(), calibration=FLOATS)
    assert "3e-4 to 1e-3" in report.notes[-1]
    assert any("norms undo that" in note for note in report.notes) is larger


def test_a_stream_with_no_room_asks_for_a_low_rate():
    ancestor = vit(4)
    with torch.no_grad():
        ancestor.blocks[1].mlp.fc2.bias[3] = 0.99 * pace.ROOM
    report = fill(vit(2, 16), wi.Ancestor.open(ancestor), ActivationAware(), calibration=FLOATS)
    assert "2e-5 to 1e-4" in report.notes[-1]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("depth", [2, 3])
def test_torchs_own_encoder_is_fitted_in_either_layout(batch_first, depth):
    def encoder(width, depth):
        with torch.random.fork_rng():
            torch.manual_seed(depth)
            layer = nn.TransformerEncoderLayer(
                width, width // 8, 2 * width, 0.0, "gelu", batch_first=batch_first, norm_first=True
            )
            norm = nn.LayerNorm(width)
            return nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False).eval()

    old, new = encoder(24, 3), encoder(24, depth)
    batches = [draw(16, 10, 24, seed=seed).float() for seed in range(4)]
    wi.project_from(old, new, method=wi.ActivationAware(), calibration=batches)
    x = draw(16, 10, 24, seed=9).float()
    with torch.no_grad():
        left = float((old(x) - new(x)).norm() / old(x).norm())
    assert left < (1e-4 if depth == 3 else 0.3)
    wi.project_from(old, encoder(16, depth), method=wi.ActivationAware(), calibration=batches)
