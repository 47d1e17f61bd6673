import math

import pytest
import torch
from helpers.inherit import small_vit
from helpers.models import state_hash
from torch.nn import functional

import weightinit as wi
from weightinit.errors import ProjectionError

DRAW = torch.Generator().manual_seed(3)
IMAGES = torch.randn(8, 3, 16, 16, generator=DRAW)
LABELS = torch.randint(5, (8,), generator=DRAW)


def step(module):
    return functional.cross_entropy(module(IMAGES), LABELS)


def test_spectra_are_fitted_and_used():
    ancestor, model = small_vit(depth=2), small_vit(depth=3)
    losses = []

    def recorded(module):
        losses.append(step(module))
        return losses[-1]

    before, held = state_hash(model), state_hash(ancestor)
    state = torch.get_rng_state()
    fitted = wi.fit_fine(ancestor, model, recorded, steps=40)
    assert state_hash(model) == before and state_hash(ancestor) == held
    assert torch.equal(state, torch.get_rng_state())
    assert float(losses[-1].detach()) < 0.8 * float(losses[0].detach())
    with torch.no_grad():
        start = float(step(wi.project_from(ancestor, model, method="fine").train()))
        end = float(step(wi.project_from(ancestor, model, method=fitted).train()))
    assert start == pytest.approx(float(losses[0].detach()), rel=1e-3)
    assert end < 0.8 * start
    assert {len(f.spectra) for f in fitted.factors.values()} == {3}


def test_only_spectra_move():
    seen = {}

    def watched(module):
        for name, value in (*module.named_parameters(), *module.weights().items()):
            seen.setdefault(name, value.detach().clone())
        seen["module"] = module
        return step(module)

    started = wi.fit_fine(small_vit(), small_vit(depth=3), step, steps=1, lr=0.0)
    fitted = wi.fit_fine(small_vit(), small_vit(depth=3), watched, steps=3)
    module = seen.pop("module")
    moved = {n for n, value in module.named_parameters() if not torch.equal(value, seen[n])}
    assert moved == {n for n in seen if n.startswith("spectra.")}
    made = module.weights()
    assert len(made) == 3 * 4 and all(not torch.equal(v, seen[n]) for n, v in made.items())
    for key, factors in fitted.factors.items():
        assert torch.equal(factors.left, started.factors[key].left), key
        assert not torch.equal(factors.spectra, started.factors[key].spectra), key


def test_a_head_of_other_classes_is_trained_along_and_not_kept():
    heads = []

    def three(module):
        heads.append(module.model.head.weight.detach().clone())
        return functional.cross_entropy(module(IMAGES), LABELS % 3)

    fitted = wi.fit_fine(small_vit(), small_vit(num_classes=3), three, steps=3)
    assert not torch.equal(heads[0], heads[-1])
    again = wi.fit_fine(small_vit(), small_vit(num_classes=3), three, options=fitted, steps=1)
    assert torch.equal(heads[-1], heads[0])
    assert not torch.equal(
        again.factors["mlp.fc1.weight"].spectra, fitted.factors["mlp.fc1.weight"].spectra
    )


def test_errors_say_what_to_do():
    ancestor = small_vit()
    with pytest.raises(ProjectionError, match="use a lower lr than"):
        wi.fit_fine(ancestor, small_vit(depth=3), lambda m: step(m) * math.nan, steps=1)
    with pytest.raises(ProjectionError, match="FINE changes depth only"):
        wi.fit_fine(ancestor, small_vit(48, 6), step, steps=1)
    fitted = wi.fit_fine(ancestor, small_vit(depth=3), step, steps=1, rank=4)
    with pytest.raises(ProjectionError, match="blocks of it: fit them for it"):
        wi.project_from(ancestor, small_vit(depth=4), method=fitted)
    with pytest.raises(ProjectionError, match="pass one of them"):
        wi.fit_fine(ancestor, small_vit(depth=3), step, steps=1, rank=5, options=fitted)
