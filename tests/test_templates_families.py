"""Nested templates of diffusion transformers and of the encoders of policies."""

import copy

import pytest
import timm
import torch
from helpers.dit import DiT
from torch import nn

import weightinit as wi
from weightinit.anatomy import Rule


def trained(nested):
    """A nested model of random parameters in float64, as a training would leave them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in nested.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return nested.double().eval()


def seeded(make, *args, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*args, **kwargs).eval()


def dit(width=32, heads=4, depth=4, **changes):
    return seeded(DiT, width=width, heads=heads, depth=depth, **changes)


def nested_dit(model):
    config = wi.TemplateConfig.of(wi.anatomy(model))
    sizes = wi.Sizes((2, 4), (1, 0.5))
    return wi.constrain(model, config, sizes=sizes, build=lambda s: dit(s.width, s.heads, s.depth))


NOISY = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
TIMES, LABELS = torch.tensor([3.0, 500.0]), torch.tensor([1, 2])
INPUTS = NOISY.double(), TIMES.double(), LABELS

WIDTHS = [(32, 4, 2, 1), (16, 2, 2, 0.5), (64, 8, 4, 1), (96, 12, 2, 1)]


@pytest.mark.parametrize(("width", "heads", "depth", "inner"), WIDTHS)
def test_a_dit_computes_what_the_trained_one_inside_does(width, heads, depth, inner):
    nested = trained(nested_dit(dit()))
    assert nested.config.kinds["ada.weight"].number == 12
    assert nested.config.kinds["ada.bias"].shape == (6 * 32,)
    target = dit(width, heads, depth).double()
    wi.init_from_templates(target, nested.to_bundle())
    with nested.at(depth=depth, width=inner), torch.no_grad():
        expected = nested(*INPUTS)
    torch.testing.assert_close(target(*INPUTS), expected, rtol=0, atol=1e-12)
    assert not target.pos_embed.requires_grad


def test_a_dit_starts_as_the_identity_and_every_part_of_it_learns():
    model = dit()
    for block in model.blocks:
        nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(block.adaLN_modulation[1].bias)
    nested = nested_dit(model)
    nested.compose()
    hidden = torch.randn(2, 64, 32)
    for block in nested.model.blocks:
        torch.testing.assert_close(block(hidden, torch.ones(2, 32)), hidden, rtol=0, atol=1e-6)
    held = [n for n, _ in nested.named_parameters() if n.startswith(("templates.", "scalers."))]
    seen = dict.fromkeys(held, False)
    optimizer = torch.optim.SGD(nested.parameters(), lr=0.1)
    for _ in range(2):
        with nested.at(nested.full):
            (nested(NOISY, TIMES, LABELS) - NOISY).square().mean().backward()
        for name in held:
            seen[name] |= bool(nested.get_parameter(name).grad.flatten(1).any(1).all())
        optimizer.step()
        optimizer.zero_grad()
    assert all(seen.values()), [name for name, found in seen.items() if not found]


def test_a_head_of_other_labels_is_fresh():
    target = dit(classes=4)
    report = wi.plan_templates(target, trained(nested_dit(dit())).to_bundle()).report()
    assert next(r for r in report.rows if r.role == "embed.label.weight").action == "fresh"
    wi.init_from_templates(target, trained(nested_dit(dit())).to_bundle())
    assert target(NOISY, TIMES, LABELS).isfinite().all()


def test_templates_of_a_dit_are_extracted():
    ancestor, target = dit(), dit()
    bundle = wi.extract_templates(ancestor)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    wi.init_from_templates(target, bundle)
    expected = ancestor(NOISY, TIMES, LABELS)
    torch.testing.assert_close(target(NOISY, TIMES, LABELS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("heads", "depth", "inner"), [(4, 2, 1), (2, 2, 0.5), (4, 4, 1)])
def test_diffusers_names_are_of_the_same_kinds(heads, depth, inner):
    """Each block embeds time and label; positions are no parameters, and are not tiled."""
    diffusers = pytest.importorskip("diffusers")

    def make(heads=4, depth=4):
        return seeded(
            diffusers.DiTTransformer2DModel,
            num_attention_heads=heads,
            attention_head_dim=8,
            in_channels=3,
            out_channels=3,
            num_layers=depth,
            sample_size=16,
            patch_size=2,
            num_embeds_ada_norm=7,
            norm_num_groups=1,
        )

    model = make()
    sizes = wi.Sizes((2, 4), (1, 0.5))
    config = wi.TemplateConfig.of(wi.anatomy(model))
    nested = trained(
        wi.constrain(model, config, sizes=sizes, build=lambda s: make(s.heads, s.depth))
    )
    target = make(heads, depth).double()
    wi.init_from_templates(target, nested.to_bundle())
    inputs = {"timestep": torch.tensor([3, 500]), "class_labels": LABELS}
    with nested.at(depth=depth, width=inner), torch.no_grad():
        expected = nested(INPUTS[0], **inputs).sample
    torch.testing.assert_close(target(INPUTS[0], **inputs).sample, expected, rtol=0, atol=1e-12)


class Policy(nn.Module):
    """One token a limb, and an action for each: MetaMorph's controller in small."""

    def __init__(self, width=32, heads=4, depth=4, norm_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, heads, 8 * width, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.limb, self.decoder = nn.Linear(8, width), nn.Linear(width, 2)
        self.pos = nn.Parameter(0.1 * torch.randn(1, 5, width))
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=not norm_first)

    def forward(self, limbs, mask=None):
        hidden = self.limb(limbs) + self.pos
        return self.decoder(self.encoder(hidden, src_key_padding_mask=mask))


RULES = [
    Rule(r"limb\.weight", "limb.weight", "d i"),
    Rule(r"limb\.bias", "limb.bias", "d"),
    Rule(r"pos", "pos", "1 t d"),
    Rule(r"decoder\.weight", "decoder.weight", "o d"),
    Rule(r"decoder\.bias", "decoder.bias", "o"),
]
LIMBS = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(6))


def nested_policy(norm_first=True):
    model = seeded(Policy, norm_first=norm_first)
    return wi.constrain(
        model,
        wi.TemplateConfig.of(wi.anatomy(model, rules=RULES)),
        sizes=wi.Sizes((2, 4), (1, 0.5)),
        build=lambda s: Policy(s.width, s.heads, s.depth, norm_first),
        rules=RULES,
    )


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(("width", "heads", "depth", "inner"), WIDTHS)
def test_a_policy_computes_what_the_trained_one_inside_does(width, heads, depth, inner, norm_first):
    nested = trained(nested_policy(norm_first))
    target = seeded(Policy, width, heads, depth, norm_first).double()
    wi.init_from_templates(target, nested.to_bundle(), rules=RULES)
    with nested.at(depth=depth, width=inner), torch.no_grad():
        expected = nested(LIMBS.double())
    torch.testing.assert_close(target(LIMBS.double()), expected, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_fused_path_reads_the_composed_weights(norm_first):
    """In evaluation without gradients it reads them as attributes, past Linear's forward."""
    nested = trained(nested_policy(norm_first)).float()
    mask = torch.arange(5).expand(3, -1) >= torch.tensor([[3], [5], [4]])
    with nested.train().at(depth=2, width=0.5):
        expected = nested(LIMBS, mask)
    with nested.eval().at(depth=2, width=0.5), torch.inference_mode():
        found = nested(LIMBS, mask)
    valid = ~mask[:, : found.shape[1]]
    torch.testing.assert_close(
        found[valid], expected[:, : found.shape[1]][valid], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("stages", [(1, 1, 3, 1), (2, 2, 6, 2), (3, 3, 9, 3)])
@pytest.mark.parametrize("width", [8, 16, 24, 40])
def test_the_shipped_convnext_templates_fill_any_size(width, stages):
    dims = tuple(width * 2**stage for stage in range(4))
    model = seeded(timm.create_model, "convnextv2_atto", dims=dims, depths=stages, num_classes=10)
    plan = wi.plan_templates(model, "cifar10-convnextv2")
    report = plan.report()
    assert not report.counts["fresh"]
    published = "timm has pretrained weights of exactly this size"
    exact = (width, stages) == (40, (2, 2, 6, 2))
    assert any(note.startswith(published) for note in report.notes) == exact
    plan.commit()
    with torch.no_grad():
        spread = model(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))).std()
    assert 0.1 < float(spread) < 100


@pytest.mark.parametrize(("width", "heads", "depth"), [(32, 2, 3), (64, 4, 8), (128, 8, 5)])
def test_the_shipped_dit_templates_predict_noise_at_any_size(width, heads, depth):
    """At once they do what random weights cannot: nearly all of an image is noise late on."""
    model = dit(width, heads, depth, classes=10)
    random = copy.deepcopy(model)
    wi.init_from_templates(model, "cifar10-dit")
    noise = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    times, labels = torch.full((16,), 950.0), torch.arange(16) % 10
    with torch.no_grad():
        left, bare = ((m(noise, times, labels) - noise).square().mean() for m in (model, random))
    assert left < 0.8 * bare


def test_a_wrong_family_is_told_what_ships():
    model = seeded(timm.create_model, "convnextv2_atto", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    with pytest.raises(wi.ProjectionError, match="'cifar10-convnextv2' is shipped"):
        wi.init_from_templates(model)
