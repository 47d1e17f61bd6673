# ruff: noqa: F722  (jaxtyping's shapes are not annotations of Python)
import importlib.util

import pytest
import torch
from beartype import beartype
from helpers.kron_reference import ROUNDING, make, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, jaxtyped
from torch import Tensor
from torch._subclasses import FakeTensorMode

from weightinit import WeightInitError, kernels
from weightinit.kernels import kron, kron_sum


@st.composite
def cases(draw, dtypes=tuple(ROUNDING)):
    axes = draw(st.integers(1, 2))
    w = draw(st.tuples(*[st.integers(1, 7)] * axes))
    s = draw(st.tuples(*[st.integers(1, 4)] * axes))
    lead = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    n, seed = draw(st.integers(1, 6)), draw(st.integers(0, 99))
    return make(n, w, s, lead, draw(st.sampled_from(dtypes)), seed)


orders = st.sampled_from(["block", "paper"])


@given(cases(), orders)
@settings(deadline=None)
def test_equals_a_loop_of_kron(case, order):
    expected = reference(*case, order)
    result = kron_sum(*case, order=order)
    assert result.dtype == case[0].dtype
    assert result.is_contiguous()
    tolerance = ROUNDING[case[0].dtype]
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)


@given(cases(), orders, st.sampled_from(["plain", "rows", "columns", "transposed"]), st.data())
@settings(deadline=None)
def test_writes_into_a_destination_of_any_layout(case, order, layout, data):
    expected = reference(*case, order)
    dtype = data.draw(st.sampled_from(list(ROUNDING)))
    *lead, columns = expected.shape
    if layout == "transposed" and len(lead) > 0:
        base = torch.full((*lead[:-1], columns, lead[-1]), 7.0, dtype=dtype)
        out, untouched = base.mT, base[:0]
    elif layout == "rows":
        base = torch.full((lead[0] + 2 if lead else 1, *lead[1:], columns), 7.0, dtype=dtype)
        out, untouched = (base[1:-1], base[[0, -1]]) if lead else (base[0], base[:0])
    elif layout == "columns":
        base = torch.full((*lead, columns + 2), 7.0, dtype=dtype)
        out, untouched = base[..., 1:-1], base[..., [0, -1]]
    else:
        out = base = torch.full(expected.shape, 7.0, dtype=dtype)
        untouched = base[:0]
    version = base._version
    assert kron_sum(*case, order=order, out=out) is out
    assert base._version > version
    tolerance = max(ROUNDING[dtype], ROUNDING[case[0].dtype])
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    assert (untouched == 7).all()


@given(cases(dtypes=[torch.float64]), orders)
@settings(deadline=None, max_examples=30)
def test_gradients_are_those_of_finite_differences(case, order):
    case = [tensor.requires_grad_() for tensor in case]
    assert torch.autograd.gradcheck(lambda t, s: kron_sum(t, s, order=order), case)


@given(cases(), orders)
@settings(deadline=None)
def test_gradients_equal_those_of_the_reference(case, order):
    weight = torch.randn(reference(*case).shape, generator=torch.Generator().manual_seed(1))
    weight = weight.to(case[0].dtype)
    ours = [tensor.clone().requires_grad_() for tensor in case]
    theirs = [tensor.double().requires_grad_() for tensor in case]
    got = torch.autograd.grad(kron_sum(*ours, order=order), ours, weight)
    want = torch.autograd.grad(reference(*theirs, order), theirs, weight.double())
    tolerance = 10 * ROUNDING[case[0].dtype]
    for a, b in zip(got, want, strict=True):
        assert a.dtype == case[0].dtype
        torch.testing.assert_close(a.double(), b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("needed", [0, 1])
def test_gradient_to_one_of_the_two(needed):
    case = make(lead=(2,))
    case[needed].requires_grad_()
    result = kron_sum(*case)
    result.sum().backward()
    assert case[needed].grad is not None
    assert case[1 - needed].grad is None


def test_double_backward_is_refused():
    case = [tensor.requires_grad_() for tensor in make()]
    (grad,) = torch.autograd.grad(kron_sum(*case).square().sum(), case[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_out_is_written_without_autograd():
    templates, scalers = (tensor.requires_grad_() for tensor in make())
    out = torch.nn.Parameter(torch.zeros(6, 10, dtype=torch.float64))
    kron_sum(templates, scalers, out=out)
    assert out.is_leaf
    torch.testing.assert_close(out.detach(), reference(templates, scalers).detach())


def test_dtypes_promote():
    templates, scalers = make()
    result = kron_sum(templates.half().requires_grad_(), scalers.float())
    assert result.dtype == torch.float32


def test_autocast_leaves_the_dtype_alone():
    case = [tensor.requires_grad_() for tensor in make(dtype=torch.float32)]
    plain = torch.autograd.grad(kron_sum(*case).sum(), case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = kron_sum(*case)
        cast = torch.autograd.grad(result.sum(), case)
    assert result.dtype == torch.float32
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("order", ["block", "paper"])
def test_compiles_without_a_graph_break(order):
    case = [tensor.requires_grad_() for tensor in make(lead=(2,))]

    def step(t, s):
        return kron_sum(t * 2, s, order=order).sin().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*case), case), torch.autograd.grad(step(*case), case)
    )


def test_compiles_with_a_destination():
    case, out = make(lead=(2,)), torch.zeros(2, 6, 10, dtype=torch.float64)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(t, s, out):
        kron_sum(t, s, out=out)
        return out * 1

    torch.testing.assert_close(step(*case, out), reference(*case))
    torch.testing.assert_close(out, reference(*case))


def test_fake_tensors_leave_no_trace():
    case, out = make(dtype=torch.float32), torch.empty(6, 10)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(tensor) for tensor in (*case, out)]
        assert kron_sum(*fake[:2]).shape == out.shape
        kron_sum(*fake[:2], out=fake[2])
    torch.testing.assert_close(kron_sum(*case, out=out).double(), reference(*case))


def test_works_in_functional_call_and_func_grad():
    class Composed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.templates, self.scalers = map(torch.nn.Parameter, make())

        def forward(self, x):
            return x @ kron_sum(self.templates, self.scalers)

    module, x = Composed(), torch.ones(1, 6, dtype=torch.float64)
    params = {name: p.detach() * 2 for name, p in module.named_parameters()}

    def loss(params):
        return torch.func.functional_call(module, params, (x,)).sum()

    torch.testing.assert_close(loss(params), 4 * module(x).sum())
    assert torch.func.grad(loss)(params)["scalers"].abs().sum() > 0


def test_meta_tensors_keep_shapes():
    case = [tensor.to("meta").requires_grad_() for tensor in make(lead=(4,))]
    result = kron_sum(*case)
    assert result.is_meta
    assert result.shape == (4, 6, 10)
    result.sum().backward()
    assert case[1].grad.shape == case[1].shape


def test_no_layers():
    templates, scalers = make(lead=(0,))
    assert kron_sum(templates, scalers).shape == (0, 6, 10)
    case = [templates.requires_grad_(), scalers.requires_grad_()]
    kron_sum(*case).sum().backward()
    assert (templates.grad == 0).all()


def test_shapes_at_run_time():
    checked = jaxtyped(typechecker=beartype)

    @checked
    def matrices(
        t: Float[Tensor, "n w1 w2"], s: Float[Tensor, "*l n s1 s2"]
    ) -> Float[Tensor, "*l s1*w1 s2*w2"]:
        return kron_sum(t, s)

    @checked
    def vectors(t: Float[Tensor, "n w"], s: Float[Tensor, "*l n s"]) -> Float[Tensor, "*l s*w"]:
        return kron_sum(t, s)

    for lead in ((), (2,), (2, 3)):
        matrices(*make(lead=lead))
        vectors(*make(w=(5,), s=(3,), lead=lead))


@pytest.mark.parametrize(
    ("templates", "scalers", "options", "message"),
    [
        ((3, 2, 5), (2, 1, 1), {}, r"templates \[3, 2, 5\] and scalers \[2, 1, 1\]"),
        ((3, 2, 5), (3, 1), {}, r"scalers \[3, 1\]"),
        ((3,), (3,), {}, r"templates \[3\]"),
        ((0, 2, 5), (0, 1, 1), {}, "N >= 1"),
        ((3, 2, 5), (3, 1, 1), {"order": "TS"}, "'block' or 'paper'"),
        ((3, 2, 5), (3, 1, 2), {"out": torch.empty(2, 5)}, r"\[2, 5\].*make \[2, 10\]"),
        ((3, 2, 5), (3, 1, 1), {"out": torch.empty(2, 5, dtype=torch.int32)}, "int32"),
        ((3, 2, 5), (3, 1, 1), {"out": torch.empty(2, 5, device="meta")}, "meta"),
    ],
)
def test_errors_name_the_shapes(templates, scalers, options, message):
    with pytest.raises(WeightInitError, match=message):
        kron_sum(torch.ones(templates), torch.ones(scalers), **options)


def test_errors_name_dtypes_and_devices():
    templates, scalers = make()
    with pytest.raises(WeightInitError, match="int64"):
        kron_sum(templates.long(), scalers)
    with pytest.raises(WeightInitError, match="meta"):
        kron_sum(templates, scalers.to("meta"))


def test_cuda_tensors_take_the_triton_kernels():
    assert kernels._backend(torch.empty(1)) is kron
    if torch.cuda.is_available():
        assert kernels._backend(torch.empty(1, device="cuda")).__name__.endswith("kron_triton")


def test_without_triton_cuda_tensors_take_the_eager_kernels(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert kernels._triton.__wrapped__() is None
