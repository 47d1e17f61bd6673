"""What a bundle of templates must hold, and what it may describe."""

import dataclasses
import math

import pytest
import torch
from helpers.bundles import SIZES, make_bundle
from hostile.base import edit_tensors, write_sound

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
