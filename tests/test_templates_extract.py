"""Extracted templates against a brute-force least squares, and against the ancestor itself."""

import pytest
import timm
import torch
from helpers.inherit import logits, small_vit
from helpers.models import draw, state_hash

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import TemplateKind


def brute_force(weights, number, tile, order, seed):
    """Alternating least squares on W = sum_t S_t (x) T_t by its definition, in fp64."""
    weights = weights.double()
    depth, rows, columns = weights.shape
    s1, s2 = rows // tile[0], columns // tile[1]
    templates = draw(number, *tile, seed=seed)
    for _ in range(200):
        basis = []  # [number s1 s2, rows columns]: what each scaler multiplies
        for t in range(number):
            for a in range(s1):
                for b in range(s2):
                    place = torch.zeros(s1, s2, dtype=torch.float64)
                    place[a, b] = 1
                    pair = (place, templates[t]) if order == "block" else (templates[t], place)
                    basis.append(torch.kron(*pair).flatten())
        basis = torch.stack(basis)
        scalers = torch.linalg.lstsq(basis.T, weights.flatten(1).T).solution.T
        scalers = scalers.view(depth, number, s1, s2)
        basis = []  # [number w1 w2, depth rows columns]
        for t in range(number):
            for i in range(tile[0]):
                for j in range(tile[1]):
                    one = torch.zeros(tile, dtype=torch.float64)
                    one[i, j] = 1
                    pairs = ((s, one) if order == "block" else (one, s) for s in scalers[:, t])
                    basis.append(torch.stack([torch.kron(*pair) for pair in pairs]).flatten())
        basis = torch.stack(basis)
        solution = torch.linalg.lstsq(basis.T, weights.flatten()).solution
        templates = solution.view(number, *tile)
    rest = weights.flatten() - solution @ basis
    return float(rest.norm() / weights.norm())


def blocks_of(model, role):
    seen = anatomy(model)
    held = dict(model.named_parameters())
    return torch.stack(
        [seen.split(b[role].spec, held[b[role].spec.name].detach())[role] for b in seen.blocks]
    )


@pytest.mark.parametrize("order", ["block", "paper"])
@pytest.mark.parametrize("number", [1, 2])
def test_nothing_is_nearer_than_the_extracted_templates(order, number):
    ancestor = small_vit(4, 2, 2, mlp_ratio=2)
    config = TemplateConfig("wave", 2, {"mlp.fc1.weight": TemplateKind(number, (2, 2))}, order)
    bundle = wi.extract_templates(ancestor, config)
    found = bundle.config.provenance["relative_error"]["mlp.fc1.weight"]
    weights = blocks_of(ancestor, "mlp.fc1.weight")
    tries = [brute_force(weights, number, (2, 2), order, seed) for seed in range(3)]
    assert min(tries) == pytest.approx(found, rel=1e-4)
    held = bundle.tensors
    composed = wi.kernels.kron_sum(
        held["templates.mlp.fc1.weight"], held["scalers.mlp.fc1.weight"], order=order
    )
    rest = (composed - weights).norm() / weights.norm()
    assert float(rest) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": False, "init_values": 0.1},
        {"qk_norm": True, "reg_tokens": 2, "mlp_ratio": 3},
        {"class_token": False, "global_pool": "avg", "fc_norm": True},
    ],
)
def test_enough_templates_are_the_ancestor(options, tmp_path):
    ancestor, model = small_vit(24, 3, 3, **options), small_vit(24, 3, 3, **options)
    before = state_hash(ancestor)
    wi.extract_templates(ancestor).save_pretrained(tmp_path)
    assert state_hash(ancestor) == before
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    bundle = wi.TemplateBundle.from_pretrained(tmp_path)
    assert bundle.config.provenance["left_out"] == []
    assert max(bundle.config.provenance["relative_error"].values()) < 1e-6
    report = wi.plan_templates(model, bundle).report()
    assert report.counts["fresh"] == 0
    wi.init_from_templates(model, bundle)
    for name, value in ancestor.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=0, atol=2e-5)
    torch.testing.assert_close(logits(model), logits(ancestor), rtol=1e-3, atol=1e-3)


def test_a_gated_mlp_comes_along():
    sizes = {"img_size": 28, "embed_dim": 24, "num_heads": 2, "depth": 2, "num_classes": 3}
    ancestor, model = (
        timm.create_model("eva02_tiny_patch14_224", **sizes).eval() for _ in range(2)
    )
    bundle = wi.extract_templates(ancestor)
    assert "mlp.up.weight" in bundle.template_config.kinds
    wi.init_from_templates(model, bundle)
    for name, value in ancestor.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=0, atol=2e-5)


@pytest.mark.parametrize("config", [None, TemplateConfig.wave(12)])
def test_a_bundle_fills_other_sizes(config, tmp_path):
    ancestor = small_vit(24, 3, 4, img_size=32)
    wi.extract_templates(ancestor, config).save_pretrained(tmp_path)
    bundle = wi.TemplateBundle.from_pretrained(tmp_path)
    for width, heads, depth in ((24, 3, 7), (48, 6, 2), (16, 2, 4), (40, 5, 5)):
        model = timm.models.VisionTransformer(
            img_size=48, patch_size=8, embed_dim=width, depth=depth, num_heads=heads, num_classes=5
        )
        report = wi.plan_templates(model, bundle).report()
        assert report.counts["fresh"] == 0
        wi.init_from_templates(model, bundle)
        assert bool(torch.isfinite(model(torch.randn(1, 3, 48, 48))).all())


def test_growing_the_width_keeps_the_function():
    """Where the head dim and all ratios are whole, as with trained templates."""
    ancestor, wide = small_vit(16, 2, 2), small_vit(32, 4, 2)
    wi.init_from_templates(wide, wi.extract_templates(ancestor))
    torch.testing.assert_close(logits(wide), logits(ancestor), rtol=1e-3, atol=1e-3)


def test_number_and_error_decide_how_many():
    ancestor = small_vit(24, 3, 3)
    few = wi.extract_templates(ancestor, number=2)
    assert {kind.number for kind in few.template_config.kinds.values()} == {2}
    one = wi.extract_templates(ancestor, number={"mlp.fc1.weight": 1})
    assert len(one.tensors["templates.mlp.fc1.weight"]) == 1
    assert len(one.tensors["templates.mlp.fc2.weight"]) == 12
    half = wi.extract_templates(ancestor, error=0.5)
    errors = half.config.provenance["relative_error"]
    assert max(errors.values()) <= 0.5
    for kind, spec in half.template_config.kinds.items():
        if spec.number > 1:
            fewer = wi.extract_templates(ancestor, number={kind: spec.number - 1})
            assert fewer.config.provenance["relative_error"][kind] > 0.5


def test_the_published_set_is_cut_to_what_there_is():
    """Of two blocks, four templates of a norm would be two too many."""
    config = TemplateConfig.wave(24)
    bundle = wi.extract_templates(small_vit(24, 3, 2), config)
    kinds = bundle.template_config.kinds
    assert kinds["attn.qkv.weight"].number == 6 and kinds["norm1.weight"].number == 2
    assert kinds["attn.qkv.bias"].parts == 3
    assert bundle.config.provenance["relative_error"]["attn.qkv.bias"] < 1e-6
    scaled = wi.extract_templates(small_vit(24, 3, 2, init_values=0.1), config)
    assert scaled.config.provenance["left_out"] == ["ls1", "ls2"]


def test_extracted_scalers_can_be_fitted():
    ancestor = small_vit(24, 3, 3)
    bundle = wi.extract_templates(ancestor, number=4)
    images = torch.randn(4, 3, 16, 16)

    def step(module):
        return (module(images) - logits(ancestor)[:1]).square().mean()

    fitted = wi.fit_scalers(small_vit(24, 3, 2), bundle, step, steps=2)
    assert fitted.config.fitted[0]["depth"] == 2


def test_what_does_not_fit_raises():
    ancestor = small_vit(24, 3, 2)
    for options, match in (
        ({"config": TemplateConfig.wave(16)}, r"shape \(16, 16\) do not divide.*\(24, 24\)"),
        ({"config": TemplateConfig.layers("tleg", 24, 2)}, "method 'wave', or None"),
        ({"number": 0}, "use 1 template or more"),
        ({"number": {"head.weight": 2}}, r"not there, \['head.weight'\]"),
        ({"number": 2, "error": 0.1}, "pass one of them"),
        ({"error": 1.0}, "from 0 to below 1"),
    ):
        with pytest.raises(ProjectionError, match=match):
            wi.extract_templates(ancestor, **options)


@pytest.mark.parametrize("tile", [(24, 24), (2, 2)])
def test_a_block_of_zeros_stays_zero(tile):
    """Untrained networks have zero biases, and some zero the end of every branch."""
    ancestor, model = small_vit(24, 3, 3), small_vit(24, 3, 3)
    with torch.no_grad():
        ancestor.blocks[1].mlp.fc2.weight.zero_()
    config = TemplateConfig("wave", tile[0], {"mlp.fc2.weight": TemplateKind(3, tile)})
    wi.init_from_templates(model, wi.extract_templates(ancestor, config))
    assert float(model.blocks[1].mlp.fc2.weight.detach().abs().max()) < 1e-6
    assert float(model.blocks[0].mlp.fc2.weight.detach().abs().max()) > 1e-2
