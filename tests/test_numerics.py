"""The same bits in whatever context a caller is, and the caller's settings as they were."""

import contextlib
import copy
import threading

import pytest
import torch
from helpers.inherit import randomise
from helpers.models import make_bundle, vit
from torch import nn

import weightinit as wi
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.numerics import plain_numerics
from weightinit.plan import Plan
from weightinit.registry import METHODS


@contextlib.contextmanager
def setting(get, set_, value):
    before = get()
    set_(value)
    try:
        yield
        assert get() == value, "the caller's setting was not put back"
    finally:
        set_(before)


def dtype(value):
    return setting(torch.get_default_dtype, torch.set_default_dtype, value)


def precision(value):
    return setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, value)


@contextlib.contextmanager
def default_device(value):
    torch.set_default_device(value)
    try:
        yield
    finally:
        torch.set_default_device(None)


CONTEXTS = {
    "autocast bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "default bfloat16": lambda: dtype(torch.bfloat16),
    "default float16": lambda: dtype(torch.float16),
    "default float64": lambda: dtype(torch.float64),
    "device meta": lambda: torch.device("meta"),
    "default device meta": lambda: default_device("meta"),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "precision medium": lambda: precision("medium"),
    "precision high": lambda: precision("high"),
}


def small(depth, width, heads):
    return vit(depth=depth, embed_dim=width, num_heads=heads)


def projection(method, old, new, **options):
    ancestor = randomise(small(*old))
    return small(*new), lambda model: wi.project_from(ancestor, model, method=method, **options)


def composition(bundle):
    model = vit(embed_dim=32, num_heads=4, num_classes=7)
    return model, lambda model: wi.init_from_templates(model, bundle)


def hypernet(kind):
    torch.manual_seed(0)
    options = {"hid": 16, "layers": 1, "heads": 2, "rank": 4, "max_ck": 8192}
    network = GraphHyperNetwork(HyperConfig(kind, **options)).eval()
    if kind == "pith":
        return projection(wi.PITH(network), (3, 32, 4), (2, 16, 2))
    return small(2, 16, 2), lambda model: wi.init_from_hypernet(model, network)


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 1, 8, 8, generator=generator) for _ in range(2)]


CALLS = {
    "templates": lambda: composition(make_bundle()),
    "mimetic": lambda: (small(2, 16, 2), wi.init_mimetic),
    "logah": lambda: hypernet("logah"),
    "pith": lambda: hypernet("pith"),
    "calibrated": lambda: projection("activation", (3, 32, 4), (2, 16, 2), calibration=batches()),
    **{
        f"{method} shrinks": lambda m=method: projection(m, (3, 32, 4), (2, 16, 2))
        for method in ("auto", "bot", "weight_selection")
    },
    "subcloning": lambda: projection("subcloning", (3, 32, 4), (2, 16, 2), calibration=batches()),
    **{
        f"{method} grows": lambda m=method: projection(m, (2, 16, 2), (3, 32, 4))
        for method in ("auto", "bert2bert", "hypercloning", "lemon", "net2net")
    },
    "expansions": lambda: projection("expansions", (2, 16, 2), (3, 16, 2)),
    "stacking": lambda: projection("stacking", (2, 16, 2), (3, 16, 2)),
}


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("call", CALLS)
def test_the_same_bits_in_every_context(call):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blank, fill = CALLS[call]()
    expected = values(fill(copy.deepcopy(blank)))
    for name, context in CONTEXTS.items():
        model = copy.deepcopy(blank)
        with context():
            fill(model)
        found = values(model)
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)
        model(torch.ones(2, 1, 8, 8)).sum().backward()  # an inference tensor could not


def test_every_method_is_tried():
    trained = {"fine", "ligo"}  # they have nothing to give before a fit
    tried = {name.split()[0] for name in CALLS} | {"activation"}
    assert set(METHODS) - trained <= tried | {"pith"}


@pytest.mark.parametrize("name", CONTEXTS)
def test_templates_are_extracted_alike_in_every_context(name):
    ancestor = randomise(small(2, 16, 2))
    expected = wi.extract_templates(ancestor, number=2).tensors
    with CONTEXTS[name]():
        found = wi.extract_templates(ancestor, number=2).tensors
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_meta_model_that_is_filled_in_inference_mode_can_be_trained():
    with torch.device("meta"):
        model = vit()
    with torch.inference_mode():
        wi.init_from_templates(model, make_bundle())
    model(torch.ones(1, 1, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_settings_are_put_back_after_an_error_and_when_threads_leave_in_any_order():
    with dtype(torch.float64), pytest.raises(KeyError), plain_numerics():
        assert torch.get_default_dtype() == torch.float32
        raise KeyError
    first, second = threading.Event(), threading.Event()

    def overlap():
        with plain_numerics():
            first.set()
            second.wait(10)

    with dtype(torch.bfloat16):
        thread = threading.Thread(target=overlap)
        with plain_numerics():
            thread.start()
            first.wait(10)
        assert torch.get_default_dtype() == torch.float32
        second.set()
        thread.join()
        assert torch.get_default_dtype() == torch.bfloat16


def test_precision_that_was_set_backend_by_backend_is_put_back():
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has one setting for all")
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with plain_numerics():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
        torch.set_float32_matmul_precision("highest")


def test_a_plan_is_computed_alike_wherever_it_is_committed():
    plan = wi.plan_templates(vit(), make_bundle())
    assert isinstance(plan, Plan)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        model = plan.commit()
    assert isinstance(model, nn.Module)
    expected = wi.init_from_templates(vit(), make_bundle())
    assert torch.equal(model.pos_embed, expected.pos_embed)


def test_a_torch_that_raises_where_there_is_no_accelerator(monkeypatch):
    def refuse():
        raise RuntimeError("Cannot access accelerator device when none is available.")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", refuse)
    with plain_numerics():
        assert not torch.is_autocast_enabled("cpu")
