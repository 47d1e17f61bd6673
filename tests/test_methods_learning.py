import math
from itertools import chain

import pytest
import timm
import torch
from helpers.inherit import fill, logits, small_vit
from helpers.models import state_hash
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.ligo.method import LiGO, _decays, fit_ligo

DIGITS = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10}


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.tensor(found.target)


@pytest.fixture(scope="module")
def ancestor(digits):
    """A small ViT that has seen the digits."""
    model = small_vit(24, 3, 2, **DIGITS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5 if parameter.ndim > 1 else 1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, labels = digits
    for step in range(200):
        chosen = slice(step % 20 * 64, step % 20 * 64 + 64)
        optimizer.zero_grad()
        cross_entropy(model.train()(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def stepper(digits, losses=None, modules=None):
    images, labels = digits
    count = iter(range(10**6))

    def step(module):
        first = next(count) % 20 * 64
        loss = cross_entropy(module(images[first : first + 64]), labels[first : first + 64])
        if losses is not None:
            losses.append(float(loss.detach()))
        if modules is not None:
            modules.append(module)
        return loss

    return step


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_loss_falls_and_the_model_trained_is_the_one_given(digits, ancestor):
    losses, modules = [], []
    model = small_vit(36, 3, 3, **DIGITS)
    before = state(ancestor), state(model)
    chosen = fit_ligo(
        ancestor, model, stepper(digits, losses, modules), steps=40, lr=1e-2,
        generator=torch.Generator().manual_seed(2), progress=False,
    )  # fmt: skip
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    for old, kept in zip((ancestor, model), before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in old.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in old.parameters())
    started = LiGO().start(anatomy(ancestor), anatomy(model))
    assert chosen.operator.keys() == started.operator.keys()
    assert not any(v.requires_grad for v in chosen.operator.values())
    wi.project_from(ancestor, model, method=chosen)
    made = modules[-1].weights()
    assert made.keys() | {"head.bias"} == dict(model.named_parameters()).keys()
    for name, value in made.items():
        assert torch.equal(model.get_parameter(name), value), name
    images = digits[0][:50]
    with torch.no_grad():
        assert torch.equal(model.eval()(images), modules[-1].eval()(images))


def test_every_part_of_the_operator_learns(digits, ancestor):
    model = small_vit(36, 3, 3, **DIGITS)
    start = LiGO(tied=False).start(anatomy(ancestor), anatomy(model), seed=5)
    trained = fit_ligo(ancestor, model, stepper(digits), steps=1, options=start, progress=False)
    assert trained.tied is False
    # The softmax does not see a bias of the keys: its gradient is nought up to rounding.
    same = [k for k, v in trained.operator.items() if torch.equal(v, start.operator[k])]
    assert not [name for name in same if "attn.k.bias" not in name]


def test_training_goes_on_from_an_operator_and_no_steps_change_nothing(digits, ancestor):
    model = small_vit(36, 3, 2, **DIGITS)
    step = stepper(digits)
    first = fit_ligo(ancestor, model, step, steps=0, progress=False)
    drawn = LiGO().start(anatomy(ancestor), anatomy(model)).operator
    assert all(torch.equal(v, drawn[k]) for k, v in first.operator.items())
    losses = []
    fit_ligo(ancestor, model, stepper(digits, losses), steps=1, options=first, progress=False)
    fill(model, ancestor, first)
    model.train()
    assert losses[0] == pytest.approx(float(stepper(digits)(model).detach()), abs=1e-6)


def test_another_head_is_trained_along_and_not_kept(digits, ancestor):
    model = small_vit(36, 3, 2, **{**DIGITS, "num_classes": 12})
    modules = []
    chosen = fit_ligo(
        ancestor, model, stepper(digits, modules=modules), steps=3, lr=1e-2, progress=False
    )
    report = wi.plan_projection(ancestor, model, method=chosen).report()
    assert report.counts["fresh"] == 2
    wi.project_from(ancestor, model, method=chosen)
    trained = modules[-1]
    own = {n for n, p in trained.model.named_parameters() if p.requires_grad}
    assert own == {"head.weight", "head.bias"}
    assert trained.weights().keys() | own == {n for n, _ in model.named_parameters()}
    assert not torch.equal(trained.model.head.weight, model.head.weight)


def test_a_meta_target_is_trained_on_the_cpu(digits, ancestor):
    with torch.device("meta"):
        model = timm.create_model(
            "vit_tiny_patch16_224", embed_dim=36, num_heads=3, depth=2, **DIGITS
        )
    chosen = fit_ligo(ancestor, model, stepper(digits), steps=1, progress=False)
    assert all(p.is_meta for p in model.parameters())
    wi.project_from(ancestor, model, method=chosen)
    assert not any(p.is_meta for p in model.parameters())


def test_a_transposed_family_trains_too():
    transformers = pytest.importorskip("transformers")

    def build(width, heads):
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=31, n_embd=width, n_layer=2, n_head=heads, n_positions=8, bos_token_id=0,
            eos_token_id=0,
        ))  # fmt: skip

    old, new = build(16, 2), build(24, 3)
    ids = torch.arange(8)[None]
    losses = []

    def step(module):
        loss = module(ids, labels=ids).loss
        losses.append(float(loss.detach()))
        return loss

    chosen = fit_ligo(old, new, step, steps=10, lr=1e-2, progress=False)
    assert losses[-1] < losses[0]
    wi.project_from(old, new, method=chosen)
    assert new.lm_head.weight is new.transformer.wte.weight


def test_what_makes_biases_and_norms_does_not_decay():
    assert _decays("width.d") and _decays("depth.3.attn.q.weight")
    assert not _decays("depth.3.attn.q.bias") and not _decays("depth.0.norm1.weight")


def test_faults_are_named(digits, ancestor):
    with pytest.raises(ProjectionError, match="only grows"):
        fit_ligo(ancestor, small_vit(16, 2, 2, **DIGITS), stepper(digits), steps=1)
    model = small_vit(36, 3, 2, **DIGITS)
    kept = logits_of(model)
    with pytest.raises(ProjectionError, match="the loss is nan at step 0"):
        fit_ligo(ancestor, model, lambda m: m(digits[0][:2]).sum() * float("nan"), steps=1)
    assert torch.equal(kept, logits_of(model))


def logits_of(model):
    with torch.no_grad():
        return model.eval()(torch.ones(1, 1, 8, 8))


def test_it_is_exported_lazily():
    assert wi.fit_ligo is fit_ligo and wi.LiGO is LiGO
    assert logits(small_vit()).shape == (3, 5)


DRAW = torch.Generator().manual_seed(3)
IMAGES = torch.randn(8, 3, 16, 16, generator=DRAW)
LABELS = torch.randint(5, (8,), generator=DRAW)


def fine_step(module):
    return cross_entropy(module(IMAGES), LABELS)


def test_spectra_are_fitted_and_used():
    ancestor, model = small_vit(depth=2), small_vit(depth=3)
    losses = []

    def recorded(module):
        losses.append(fine_step(module))
        return losses[-1]

    before, held = state_hash(model), state_hash(ancestor)
    state = torch.get_rng_state()
    fitted = wi.fit_fine(ancestor, model, recorded, steps=40)
    assert state_hash(model) == before and state_hash(ancestor) == held
    assert torch.equal(state, torch.get_rng_state())
    assert float(losses[-1].detach()) < 0.8 * float(losses[0].detach())
    with torch.no_grad():
        start = float(fine_step(wi.project_from(ancestor, model, method="fine").train()))
        end = float(fine_step(wi.project_from(ancestor, model, method=fitted).train()))
    assert start == pytest.approx(float(losses[0].detach()), rel=1e-3)
    assert end < 0.8 * start
    assert {len(f.spectra) for f in fitted.factors.values()} == {3}


def test_only_spectra_are_learned():
    seen = {}

    def watched(module):
        held = module.model.named_parameters(), module.learned.items(), module.weights().items()
        for name, value in chain(*held):
            seen.setdefault(name, value.detach().clone())
        seen["module"] = module
        return fine_step(module)

    started = wi.fit_fine(small_vit(), small_vit(depth=3), fine_step, steps=1, lr=0.0)
    fitted = wi.fit_fine(small_vit(), small_vit(depth=3), watched, steps=3)
    module = seen.pop("module")
    assert all(torch.equal(value, seen[n]) for n, value in module.model.named_parameters())
    assert {n.rpartition(".")[2] for n in module.learned} == {"spectra"}
    assert not any(torch.equal(value, seen[n]) for n, value in module.learned.items())
    made = module.weights()
    assert len(made) == 3 * 4 and all(not torch.equal(v, seen[n]) for n, v in made.items())
    for key, factors in fitted.factors.items():
        assert torch.equal(factors.left, started.factors[key].left), key
        assert not torch.equal(factors.spectra, started.factors[key].spectra), key


def test_a_head_of_other_classes_is_trained_along_and_not_kept():
    heads = []

    def three(module):
        heads.append(module.model.head.weight.detach().clone())
        return cross_entropy(module(IMAGES), LABELS % 3)

    fitted = wi.fit_fine(small_vit(), small_vit(num_classes=3), three, steps=3)
    assert not torch.equal(heads[0], heads[-1])
    again = wi.fit_fine(small_vit(), small_vit(num_classes=3), three, options=fitted, steps=1)
    assert torch.equal(heads[-1], heads[0])
    assert not torch.equal(
        again.factors["mlp.fc1.weight"].spectra, fitted.factors["mlp.fc1.weight"].spectra
    )


def test_errors_of_fine_say_what_to_do():
    ancestor = small_vit()
    with pytest.raises(ProjectionError, match="use a lower lr than"):
        wi.fit_fine(ancestor, small_vit(depth=3), lambda m: fine_step(m) * math.nan, steps=1)
    with pytest.raises(ProjectionError, match="FINE changes depth only"):
        wi.fit_fine(ancestor, small_vit(48, 6), fine_step, steps=1)
    fitted = wi.fit_fine(ancestor, small_vit(depth=3), fine_step, steps=1, rank=4)
    with pytest.raises(ProjectionError, match="blocks of it: fit them for it"):
        wi.project_from(ancestor, small_vit(depth=4), method=fitted)
    with pytest.raises(ProjectionError, match="pass one of them"):
        wi.fit_fine(ancestor, small_vit(depth=3), fine_step, steps=1, rank=5, options=fitted)
