"""Templates of models of several widths, with kernels: ConvNeXt at other dims and depths."""

import pytest
import timm
import torch

import weightinit as wi
from weightinit.errors import ProjectionError

DIMS, DEPTHS = (8, 16, 24, 32), (2, 2, 4, 2)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def convnext(dims=DIMS, depths=DEPTHS, **changes):
    options = {"patch_size": 4, "num_classes": 5} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("convnextv2_atto", dims=dims, depths=depths, **options).eval()


def nested(**changes):
    model = convnext(**changes)
    made = wi.constrain(
        model,
        wi.TemplateConfig.of(wi.anatomy(model)),
        sizes=wi.Sizes(depths=((1, 1, 2, 1), DEPTHS), widths=(1, 0.5)),
        build=lambda size: convnext(size.dims, size.stages, **changes),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def scaled(factor):
    return tuple(int(dim * factor) for dim in DIMS)


V1 = {"use_grn": False, "ls_init_value": 1e-2}


@pytest.mark.parametrize("changes", [{}, V1, {"conv_mlp": True}], ids=["v2", "v1", "conv_mlp"])
@pytest.mark.parametrize(
    ("factor", "depths", "width"),
    [(1, DEPTHS, 1), (0.5, (1, 1, 2, 1), 0.5), (2, DEPTHS, 1), (1.5, (1, 1, 2, 1), None),
     (3, (1, 1, 2, 1), 1)],
)  # fmt: skip
def test_a_target_computes_what_the_trained_network_inside_does(changes, factor, depths, width):
    """Copies of all channels leave LayerNorm's and GRN's statistics as they are."""
    model = nested(**changes).double().eval()
    target = convnext(scaled(factor), depths, **changes).double()
    plan = wi.plan_templates(target, model.to_bundle())
    assert plan.report().counts["fresh"] == 0
    plan.commit()
    found = target(IMAGES.double())
    assert torch.isfinite(found).all()
    if width is not None:  # 1.5 is two copies of 0.75, which was not trained
        with model.at(depth=sum(depths), width=width), torch.no_grad():
            expected = model(IMAGES.double())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_deeper_stages_and_a_bundle_that_is_saved(tmp_path):
    bundle = nested().to_bundle()
    assert bundle.config.traits["trained_depths"] == [[1, 1, 2, 1], [2, 2, 4, 2]]
    assert bundle.tensors["scalers.stages.2.mlp.fc1.weight"].shape == (4, 8, 4, 1)
    bundle.save_pretrained(tmp_path)
    again = wi.TemplateBundle.from_pretrained(tmp_path)
    one, two = (convnext(scaled(2), (3, 3, 9, 3)) for _ in range(2))
    wi.init_from_templates(one, bundle)
    wi.init_from_templates(two, again)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_template_and_scaler_has_a_gradient_by_the_second_step():
    model = convnext(**V1, drop_path_rate=0.0)
    made = wi.constrain(model, wi.TemplateConfig.of(wi.anatomy(model))).train()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    held = [n for n, _ in made.named_parameters() if n.startswith(("templates.", "scalers."))]
    seen = dict.fromkeys(held, False)
    for _ in range(2):
        made(IMAGES).square().sum().backward()
        for name in held:
            seen[name] |= bool(made.get_parameter(name).grad.flatten(1).any(1).all())
        optimizer.step()
        optimizer.zero_grad()
    assert all(seen.values()), [name for name, found in seen.items() if not found]


def test_scalers_are_fitted_for_depths_and_widths_of_all_stages():
    bundle = nested().to_bundle()
    target = convnext(scaled(1.5), (1, 2, 3, 1))
    labels = torch.tensor([1, 2])
    fitted = wi.fit_scalers(
        target, bundle, lambda m: torch.nn.functional.cross_entropy(m(IMAGES), labels), steps=2
    )
    assert "fitted scalers" in str(wi.plan_templates(target, fitted).report())
    other = convnext(scaled(1.5), (2, 1, 3, 1))
    assert "nested scalers" in str(wi.plan_templates(other, fitted).report())


def test_kernels_of_another_size_are_resampled():
    bundle = nested().to_bundle()
    whole, small = convnext(), convnext(kernel_sizes=5)
    for model in (whole, small):
        wi.init_from_templates(model, bundle)
    sums = [m.stages[2].blocks[1].conv_dw.weight.sum((1, 2, 3)) for m in (whole, small)]
    assert small.stages[2].blocks[1].conv_dw.weight.shape[-1] == 5
    assert torch.corrcoef(torch.stack(sums))[0, 1] > 0.9
    assert torch.isfinite(small(IMAGES)).all()


def test_stages_of_unlike_ratios_fall_back_to_cropped_templates():
    target = convnext((16, 24, 24, 48))
    wi.init_from_templates(target, nested().to_bundle())
    assert torch.isfinite(target(IMAGES)).all()


@pytest.mark.parametrize("changes", [{}, V1, {"conv_mlp": True}, {"kernel_sizes": 5}])
def test_templates_extracted_from_a_convnext_hold_all_of_it(changes):
    ancestor, target = convnext(**changes), convnext(**changes)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in ancestor.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    wi.init_from_templates(target, wi.extract_templates(ancestor))
    torch.testing.assert_close(target(IMAGES), ancestor(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_width_that_leaves_no_whole_channels_is_named():
    model = convnext()
    config = wi.TemplateConfig.of(wi.anatomy(model))
    with pytest.raises(ProjectionError, match="whole channels and heads"):
        wi.constrain(model, config, sizes=wi.Sizes(widths=(0.3,)), build=lambda size: model)
    with pytest.raises(ProjectionError, match="one number for each stage"):
        wi.constrain(model, config, sizes=wi.Sizes(depths=(6,)), build=lambda size: model)
