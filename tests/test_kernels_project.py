# ruff: noqa: F722  (jaxtyping's shapes are not annotations of Python)
import pytest
import torch
from beartype import beartype
from helpers.project_reference import DTYPES, close, gradients, make, rebuilt, reference, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, jaxtyped
from torch import Tensor
from torch._subclasses import FakeTensorMode

from weightinit import WeightInitError
from weightinit.kernels import project

LEADS = [
    ((), (), ()),
    ((3,), (), ()),
    ((3,), (3,), (3,)),
    ((3,), (1,), (3,)),
    ((), (3,), ()),
    ((2, 3), (), (2, 3)),
    ((2, 3), (2, 1), (3,)),
    ((1,), (1, 1), ()),
    ((0,), (), ()),
]


@st.composite
def cases(draw, dtypes=DTYPES):
    sizes = draw(st.tuples(*[st.integers(1, 7)] * 4))
    rank = st.sampled_from([None, "dense", 1, 2, 5])
    ranks = draw(st.tuples(rank, rank))
    # The identity keeps the size.
    sizes = (
        sizes[1] if ranks[0] is None else sizes[0],
        *sizes[1:3],
        sizes[2] if ranks[1] is None else sizes[3],
    )
    leads, dtype = draw(st.sampled_from(LEADS)), draw(st.sampled_from(dtypes))
    return make(sizes, ranks, leads, dtype=dtype, seed=draw(st.integers(0, 99)))


@given(cases())
@settings(deadline=None)
def test_equals_the_formula(case):
    result = project(*case)
    assert result.dtype == case[0].dtype
    assert result.is_contiguous()
    close(result, reference(*case), result.dtype)


def test_the_identity_copies():
    source, _, _ = make()
    result = project(source)
    assert torch.equal(result, source)
    assert result.data_ptr() != source.data_ptr()


@given(cases(dtypes=[torch.float64]))
@settings(deadline=None, max_examples=30)
def test_gradients_are_those_of_finite_differences(case):
    leaves = [tensor.requires_grad_() for tensor in tensors(case)]
    assert torch.autograd.gradcheck(lambda *values: project(*rebuilt(case, values)), leaves)


@given(cases())
@settings(deadline=None)
def test_gradients_equal_those_of_the_formula(case):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(reference(*case).shape, generator=generator).to(case[0].dtype)
    got = gradients(project, case, weight)
    want = gradients(lambda *parts: reference(*parts), double(case), weight.double())
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == case[0].dtype
        close(ours, theirs, ours.dtype, slack=4)  # sums over layers may cancel


def double(case):
    return rebuilt(case, [tensor.double() for tensor in tensors(case)])


@pytest.mark.parametrize("leads", [((), (), ()), ((3,), (), (3,)), ((2, 3), (2, 1), ())])
@pytest.mark.parametrize("needed", range(5))
def test_gradient_to_one_tensor(needed, leads):
    case = make((5, 7, 4, 6), (2, 3), leads)
    weight = torch.ones_like(reference(*case))
    want = gradients(reference, case, weight)[needed]
    leaves = tensors(case)
    leaves[needed].requires_grad_()
    project(*case).backward(weight)
    torch.testing.assert_close(leaves[needed].grad, want)
    assert [leaf.grad is not None for leaf in leaves] == [n == needed for n in range(5)]


def test_second_derivatives_are_those_of_finite_differences():
    case = make((2, 3, 2, 2), (1, "dense"), ((2,), (), ()))
    leaves = [tensor.requires_grad_() for tensor in tensors(case)]
    assert torch.autograd.gradgradcheck(lambda *values: project(*rebuilt(case, values)), leaves)


@pytest.mark.parametrize(("dtype", "number"), [(torch.float16, 2049), (torch.bfloat16, 257)])
def test_half_precision_is_rounded_once(dtype, number):
    """The intermediate result, number and number - 1, is more than the dtype can hold."""
    ones = torch.ones(number, 2, dtype=dtype)
    ones[0, 1] = 0
    left = ones[None, :, 0]
    right = torch.tensor([[1.0, -1.0]], dtype=dtype, requires_grad=True)
    result = project(ones, left, right)
    assert result == 1
    (grad,) = torch.autograd.grad(-result, right)
    assert (grad == torch.tensor([[-number, 1 - number]]).to(dtype)).all()


def test_dtypes_promote():
    source, left, right = make()
    result = project(source.half().requires_grad_(), left.float(), right.bfloat16())
    assert result.dtype == torch.float32
    result.sum().backward()


def test_autocast_leaves_the_dtype_alone():
    case = [tensor.requires_grad_() for tensor in make(dtype=torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = project(*case)
    assert cast.dtype == torch.float32
    results = [torch.autograd.grad(result.sum(), case) for result in (project(*case), cast)]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("ranks", [("dense", "dense"), (2, 3), (None, 2)])
def test_compiles_without_a_graph_break(ranks):
    case = make((7, 7, 4, 6), ranks, ((3,), (), ()))
    leaves = [tensor.requires_grad_() for tensor in tensors(case)]

    def step(*values):
        source, left, right = rebuilt(case, values)
        return project(source * 2, left, right).sin().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(step(*leaves), leaves)
    )


def test_fake_tensors_leave_no_trace():
    case = make(dtype=torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(tensor) for tensor in case]
        assert project(*fake).shape == (5, 6)
    close(project(*case), reference(*case), torch.float32)


def test_works_in_functional_call_and_func_grad():
    class Projected(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.source, self.left, self.right = map(torch.nn.Parameter, make())

        def forward(self, x):
            return x @ project(self.source, self.left, self.right)

    layer, x = Projected(), torch.ones(1, 5, dtype=torch.float64)
    params = {name: p.detach() * 2 for name, p in layer.named_parameters()}

    def loss(params):
        return torch.func.functional_call(layer, params, (x,)).sum()

    torch.testing.assert_close(loss(params), 8 * layer(x).sum())
    assert torch.func.grad(loss)(params)["left"].abs().sum() > 0


def test_meta_tensors_keep_shapes():
    case = make((5, 7, 4, 6), (2, "dense"), ((3,), (), ()), device="meta")
    leaves = [tensor.requires_grad_() for tensor in tensors(case)]
    result = project(*case)
    assert result.is_meta
    assert result.shape == (3, 5, 6)
    result.sum().backward()
    assert [leaf.grad.shape for leaf in leaves] == [leaf.shape for leaf in leaves]


def test_no_layers():
    case = [tensor.requires_grad_() for tensor in make(leads=((0,), (), ()))]
    result = project(*case)
    assert result.shape == (0, 5, 6)
    result.sum().backward()
    assert (case[1].grad == 0).all()


def test_shapes_at_run_time():
    checked = jaxtyped(typechecker=beartype)

    @checked
    def dense(
        w: Float[Tensor, "*l o i"], p: Float[Tensor, "*#l O o"], q: Float[Tensor, "*#l I i"]
    ) -> Float[Tensor, "*l O I"]:
        return project(w, p, q)

    @checked
    def low_rank(
        w: Float[Tensor, "*l o i"],
        p: tuple[Float[Tensor, "*#l O r"], Float[Tensor, "*#l r o"]],
        q: tuple[Float[Tensor, "*#l I s"], Float[Tensor, "*#l s i"]],
    ) -> Float[Tensor, "*l O I"]:
        return project(w, p, q)

    for leads in (((), (), ()), ((2,), (), (2,)), ((2, 3), (), (2, 1))):
        dense(*make(leads=leads))
        low_rank(*make(ranks=(2, 3), leads=leads))


def ones(*shapes):
    return tuple(torch.ones(shape) for shape in shapes)


@pytest.mark.parametrize(
    ("source", "left", "right", "message"),
    [
        ((4, 3), (5, 3), None, r"source \[4, 3\], left \[5, 3\] and right None do not fit"),
        ((4, 3), None, (5, 4), r"right \[5, 4\] do not fit; pass .*right \[..., I, i\]"),
        ((4, 3), [(5, 2), (4, 2)], None, r"left \[5, 2\] and \[4, 2\]"),
        ((4, 3), None, [(5, 2), (3, 2)], r"right \[5, 2\] and \[3, 2\]"),
        ((2, 4, 3), (3, 5, 4), None, "leading axes that broadcast"),
        ((4,), (5, 4), None, r"source \[4\]"),
        ((4, 3), [(5, 4)], None, "left has 1 tensors; pass a matrix, a pair"),
        ((4, 3), None, [(5, 3)] * 3, "right has 3 tensors"),
    ],
)
def test_errors_name_the_shapes(source, left, right, message):
    left, right = (
        factor and (ones(*factor) if isinstance(factor, list) else torch.ones(factor))
        for factor in (left, right)
    )
    with pytest.raises(WeightInitError, match=message):
        project(torch.ones(source), left, right)


def test_errors_name_dtypes_and_devices():
    source, left, right = make()
    with pytest.raises(WeightInitError, match="int64"):
        project(source.long(), left, right)
    with pytest.raises(WeightInitError, match="meta"):
        project(source, left.to("meta"), right)
