"""Draws of the methods: the same bits whatever the caller's default dtype is."""

import pytest
import torch
from helpers.inherit import small_vit

import weightinit as wi
from weightinit.anatomy import anatomy

GROWING = [
    wi.LEMON(),
    wi.HyperCloning(snr_db=10),
    wi.Net2Net(mapping="random", noise=0.1),
    wi.Expansions(),
    wi.Bert2BERT(mode="aki", copies="random"),
    wi.LiGO(width_init="sel_noisy"),
    wi.LiGO(depth_init="rand", tied=False),
]
SHRINKING = [
    wi.WeightSelection(),
    wi.WeightSelection("random", faithful=True),
    wi.Subcloning(),
    wi.ActivationAware(),
    wi.FINE(rank=4),
    wi.BoT(),
    wi.EachAxis(),
]


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float64], ids=str)
def default(request):
    """Another default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


def values(method, old, new, batches):
    """What a method writes, without the door that puts the caller's settings aside."""
    planned = method.plan(wi.Ancestor.open(old), anatomy(new), seed=3, calibration=batches)
    written = {}
    for recipe in planned.recipes(anatomy(new)):
        out = torch.zeros(recipe.spec.shape, dtype=torch.float32)
        with torch.no_grad():
            recipe.fill(out)
        written[recipe.spec.name] = out
    return written


def pair(method):
    """Two sizes, in float32 whatever the default is."""
    rms = {"norm_layer": "rmsnorm"} if isinstance(method, wi.Expansions) else {}
    small, large = (24, 3, 2), (40, 5, 3)
    if isinstance(method, wi.HyperCloning):
        large = (48, 6, 3)
    if isinstance(method, wi.FINE):
        small, large = (24, 3, 2), (24, 3, 3)
    sizes = (large, small) if method in SHRINKING else (small, large)
    batches = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) for _ in "abc"]
    return *(small_vit(*size, **rms).float() for size in sizes), batches


WANTED = {repr(m): (m, *pair(m)) for m in (*GROWING, *SHRINKING)}
STARTED = (
    wi.LiGO(width_init="sel_noisy")
    .start(anatomy(small_vit(24, 3, 2)), anatomy(small_vit(40, 5, 3)))
    .operator
)
BITS = {name: values(*given) for name, given in WANTED.items()}


@pytest.mark.parametrize("name", WANTED)
def test_another_default_dtype_changes_no_bit(name, default):
    found = values(*WANTED[name])
    assert all(torch.equal(found[n], value) for n, value in BITS[name].items())


def test_operators_are_learned_from_the_same_start(default):
    options = wi.LiGO(width_init="sel_noisy")
    old, new, _ = WANTED[repr(options)][1:]
    for context in (torch.device("meta"), torch.autocast("cpu", torch.bfloat16)):
        with context:
            fitted = wi.fit_ligo(old, new, torch.sum, steps=0, options=options, progress=False)
        assert all(torch.equal(fitted.operator[n], value) for n, value in STARTED.items())
