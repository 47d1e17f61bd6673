import math

import pytest
import torch
from helpers.models import bundle_hash, make_bundle, state_hash, vit
from torch.nn import functional

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.templates.compose import Composer

DRAW = torch.Generator().manual_seed(3)
IMAGES = torch.randn(16, 1, 8, 8, generator=DRAW)
LABELS = torch.randint(5, (16,), generator=DRAW)


def step(module):
    return functional.cross_entropy(module(IMAGES), LABELS)


def test_scalers_are_fitted_and_used(bundle):
    model = vit(embed_dim=32, num_heads=4, depth=4)
    losses = []

    def recorded(module):
        losses.append(step(module))
        return losses[-1]

    fitted = wi.fit_scalers(model, bundle, recorded, steps=30, lr=1e-2)
    assert float(losses[-1].detach()) < 0.8 * float(losses[0].detach())
    entry = {"depth": 4, "sizes": {"d": 32, "h": 4, "k": 8, "m": 128}}
    assert fitted.config.fitted == (entry,)
    assert {n for n in fitted.tensors if n not in bundle.tensors} == {
        f"fitted.0.{kind}" for kind in bundle.template_config.kinds
    }
    with torch.no_grad():
        before = float(step(wi.init_from_templates(model, bundle)))
        after = float(step(wi.init_from_templates(model, fitted)))
    assert before == pytest.approx(float(losses[0].detach()), rel=1e-4)
    assert after < 0.8 * before


def test_nothing_of_the_users_changes(bundle):
    model = vit(depth=2)
    before, held = state_hash(model), bundle_hash(bundle)
    state = torch.get_rng_state()
    wi.fit_scalers(model, bundle, step, steps=2)
    assert state_hash(model) == before and bundle_hash(bundle) == held
    assert torch.equal(state, torch.get_rng_state())


def test_only_scalers_move(bundle):
    seen = {}

    def watched(module):
        for name, value in module.named_parameters():
            seen.setdefault(name, value.detach().clone())
        seen["module"] = module
        return step(module)

    wi.fit_scalers(vit(depth=2), bundle, watched, steps=3)
    moved = {
        name
        for name, value in seen.pop("module").named_parameters()
        if not torch.equal(value, seen[name])
    }
    assert moved == {n for n in seen if n.startswith("scalers.")}


def test_a_head_of_other_classes_is_trained_along_and_not_kept(bundle):
    labels = LABELS % 3

    def three(module):
        seen.append(module.model.head.weight.detach().clone())
        return functional.cross_entropy(module(IMAGES), labels)

    seen = []
    fitted = wi.fit_scalers(vit(num_classes=3), bundle, three, steps=3)
    assert not torch.equal(seen[0], seen[-1])
    assert torch.equal(fitted.tensors["outside.head.weight"], bundle.tensors["outside.head.weight"])


def test_the_same_size_is_replaced_and_another_added(bundle):
    once = wi.fit_scalers(vit(depth=2), bundle, step, steps=1)
    twice = wi.fit_scalers(vit(depth=2), once, step, steps=2)
    assert len(twice.config.fitted) == 1
    more = wi.fit_scalers(vit(depth=5), twice, step, steps=1)
    assert [entry["depth"] for entry in more.config.fitted] == [2, 5]
    for name, tensor in twice.tensors.items():
        assert torch.equal(more.tensors[name], tensor)


def test_linear_scalers_are_a_start_too(bundle, tmp_path):
    model = vit(embed_dim=32, num_heads=4, depth=2)
    fitted = wi.fit_scalers(model, bundle, step, steps=1, lr=0.0, scalers="linear")
    start = Composer.of(bundle, anatomy(model)).start(bundle, "linear")
    for kind, value in start.items():
        torch.testing.assert_close(fitted.tensors[f"fitted.0.{kind}"], value.float())
    fitted.save_pretrained(tmp_path)
    again = wi.TemplateBundle.from_pretrained(tmp_path)
    assert again.config.fitted == fitted.config.fitted


def test_a_meta_model_names_a_size(bundle):
    with torch.device("meta"):
        model = vit(depth=2)
    assert wi.fit_scalers(model, bundle, step, steps=1).config.fitted[0]["depth"] == 2
    assert all(p.is_meta for p in model.parameters())


def test_errors_say_what_to_do(bundle):
    with pytest.raises(ProjectionError, match="use a bundle of method 'wave'"):
        wi.fit_scalers(vit(), make_bundle("tleg"), step, steps=1)
    with pytest.raises(ProjectionError, match="use a lower lr"):
        wi.fit_scalers(vit(), bundle, lambda m: step(m) * math.nan, steps=1)
