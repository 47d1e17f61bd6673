"""What a bundle of templates must hold, and what it may describe."""

import dataclasses
import json
import math
import random

import pytest
import timm
import torch
from helpers.bundles import SIZES, make_bundle
from hostile.base import edit_tensors, write_sound

import weightinit as wi
from weightinit.errors import BundleError
from weightinit.files.config import BundleConfig
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import TemplateKind


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("templates.norm1.weight"), "lacks tensors"),
        (lambda t: t.update({"more": torch.ones(1)}), "unknown ones"),
        (lambda t: t.update({"outside.norm.weight": torch.ones(7)}), r"outside\.norm\.weight"),
        (lambda t: t.update({"outside.pos": torch.ones(5, 8).double()}), "cast it"),
        (lambda t: t.update({"outside/pos": torch.ones(5, 8)}), "not allowed"),
        (lambda t: t.update({"outside.rope.f": torch.ones(0)}), "positive"),
    ],
)
def test_a_bundle_that_does_not_fit_its_config_cannot_be_made(change, words):
    bundle = make_bundle()
    tensors = dict(bundle.tensors)
    change(tensors)
    with pytest.raises(BundleError, match=words):
        TemplateBundle(bundle.config, tensors)


def test_closed_form_methods_need_no_scalers_but_whole_layers():
    options = TemplateConfig("tleg", 8, {"attn.qkv.weight": TemplateKind(2, (24, 8), parts=3)})
    config = BundleConfig("templates", "tleg", options.to_dict(), SIZES, 6, "MIT")
    TemplateBundle(config, {"templates.attn.qkv.weight": torch.ones(2, 24, 8)})
    half = TemplateConfig("tleg", 8, {"attn.qkv.weight": TemplateKind(2, (12, 8), parts=3)})
    config = dataclasses.replace(config, options=half.to_dict())
    with pytest.raises(BundleError, match="does not span a whole part"):
        TemplateBundle(config, {"templates.attn.qkv.weight": torch.ones(2, 12, 8)})


def test_small_templates_may_describe_a_vit_large():
    """24 blocks of width 1024 over templates of width 64: legitimate, at 600 times the file."""
    options = TemplateConfig.wave(64)
    square = {kind: spec for kind, spec in options.kinds.items() if len(spec.shape) == 2}
    shapes = {f"templates.{kind}": (spec.number, *spec.shape) for kind, spec in square.items()}
    for kind, wide in (("attn.qkv.weight", (3072, 1024)), ("mlp.fc1.weight", (4096, 1024))):
        scaler = tuple(n // 64 for n in wide)
        shapes[f"fitted.0.{kind}"] = (24, square[kind].number, *scaler)
    config = BundleConfig(
        "templates", "wave", options.to_dict(), SIZES | {"d": 64}, 1, "MIT", fitted=({},)[:0]
    )
    size = sum(4 * math.prod(shape) for shape in shapes.values())
    TemplateBundle.check_expansion(config, shapes, size, 2**33)
    with pytest.raises(BundleError, match="expansion bomb"):
        TemplateBundle.check_expansion(config, shapes, size, 2**28)


def test_missing_scalers_are_named_for_wave_only(tmp_path):
    write_sound(tmp_path)
    edit_tensors(tmp_path, lambda t: [t.pop(n) for n in list(t) if n.startswith("scalers")])
    with pytest.raises(BundleError, match=r"lacks tensors \[scalers.*and 2 more\]"):
        TemplateBundle.from_pretrained(tmp_path)


def staged():
    """A bundle of kinds by stage, as WeiT's training of a ConvNeXt leaves it."""
    model = timm.create_model("convnextv2_atto", dims=(4, 8, 8, 12), depths=(1, 1, 2, 1))
    nested = wi.constrain(
        model,
        wi.TemplateConfig.of(wi.anatomy(model)),
        sizes=wi.Sizes(widths=(1, 0.5)),
        build=lambda size: timm.create_model("convnextv2_atto", dims=size.dims, depths=size.stages),
    )
    return nested.to_bundle()


@pytest.mark.parametrize(
    ("trait", "value"),
    [
        ("grid", 7), ("grid", [4]), ("grid", [4, "4"]), ("pos_prefix", "1"), ("pos_prefix", -1),
        ("prefix_tokens", True), ("prefix_tokens", [1]), ("norm", 5), ("family", ["vit"]),
        ("main_stacks", "blocks"), ("main_stacks", ["stages.0"]), ("depths", [1, 1, 2]),
        ("depths", [1, 1, 3, 1]), ("depths", [1, 1, -2, 1]), ("trained_widths", [2.0]),
        ("trained_widths", ["half"]), ("trained_widths", 0.5), ("trained_depths", [["1"]]),
        ("trained_depths", 3), ("main_stacks", None), ("depths", None),
    ],
)  # fmt: skip
def test_traits_of_another_form_are_refused(trait, value):
    bundle = staged()
    traits = {**bundle.config.traits, trait: value}
    with pytest.raises(BundleError):
        TemplateBundle(dataclasses.replace(bundle.config, traits=traits), bundle.tensors)


def test_hostile_kinds_of_stages_are_refused_or_do_no_harm():
    """Whatever a config says of kinds, stacks and sizes: an error of the library, or a model."""
    bundle, rng = staged(), random.Random(0)
    refused = 0
    for _ in range(60):
        config = json.loads(json.dumps(dataclasses.asdict(bundle.config)))
        tensors = dict(bundle.tensors)
        for _ in range(rng.randint(1, 3)):
            kinds = config["options"]["kinds"]
            kind = rng.choice(sorted(kinds))
            what = rng.randrange(7)
            if what == 0:
                kinds[kind]["stack"] = rng.choice(["", "stages.3", "blocks", "stages.", 3])
            elif what == 1:
                kinds[kind]["shape"] = [rng.choice([1, 2, 4, 49, 2**31]) for _ in range(2)]
            elif what == 2:
                kinds[kind]["number"] = rng.choice([0, 1, 3, 10**6])
            elif what == 3:
                name = rng.choice(sorted(tensors))
                tensors[name] = torch.zeros([rng.randint(1, 3) for _ in range(rng.randint(1, 4))])
            elif what == 4:
                config["sizes"][rng.choice(["d0", "m1", "d3", "h"])] = rng.choice([1, 3, 8])
            elif what == 5:
                config["traits"]["trained_widths"] = rng.choice([[0.25], [0.3, 1], [1e-3]])
            else:
                config["traits"]["depths"] = rng.choice([[2, 1, 1, 1], [1, 1, 2, 1], [5]])
        config["fitted"] = ()
        target = timm.create_model("convnextv2_atto", dims=(6, 12, 12, 18), depths=(1, 2, 1, 1))
        try:
            made = TemplateBundle(BundleConfig(**config), tensors)
            TemplateBundle.check_expansion(
                made.config, {n: tuple(t.shape) for n, t in tensors.items()}, 10**5, 2**30
            )
            wi.init_from_templates(target, made)
        except wi.WeightInitError:
            refused += 1
    assert refused > 20


def test_matrices_have_no_more_templates_than_values():
    kinds = {"attn.proj.weight": TemplateKind(2, (1, 1))}
    options = TemplateConfig("wave", 1, kinds)
    config = BundleConfig("templates", "wave", options.to_dict(), SIZES, 1, "MIT")
    with pytest.raises(BundleError, match="allowed are 1 for each value"):
        TemplateBundle.check_expansion(config, {}, 100, 2**30)
