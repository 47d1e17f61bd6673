import pytest
import torch
from helpers.inherit import small_vit

from weightinit.anatomy import anatomy
from weightinit.methods.ligo.operator import (
    DEPTH_INITS,
    WIDTH_INITS,
    draw_operator,
    expand,
    levels,
    operator_shapes,
)


def draw(depth_init="stackbert_noisy", width_init="rand", depths=(2, 5), **options):
    old, new = (
        anatomy(small_vit(width, heads, depth))
        for width, heads, depth in ((24, 3, depths[0]), (32, 4, depths[1]))
    )
    return draw_operator(old, new, depth_init, width_init, **options)


@pytest.mark.parametrize("scheme", DEPTH_INITS)
def test_depth_weights_sum_to_one(scheme):
    operator = draw(scheme)
    for name, value in operator.items():
        if not name.startswith("depth."):
            continue
        torch.testing.assert_close(value.sum(), torch.ones(()))
        block = int(name.split(".")[1])
        one = {"s": block % 2, "i": block * 2 // 5}.get(scheme[0])
        if one is not None:
            assert value.argmax() == one
            noisy = scheme.endswith("noisy")
            assert (0 < value[1 - one] < 0.03) if noisy else value[1 - one] == 0
    assert not torch.equal(operator["depth.0.attn.q.weight"], operator["depth.0.attn.q.bias"]) or (
        scheme in ("stackbert", "interlace")
    )


def test_interlacing_twice_the_depth_is_the_published_half():
    operator = draw("interlace", depths=(2, 4))
    assert [int(operator[f"depth.{b}.norm1.weight"].argmax()) for b in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("scheme", WIDTH_INITS)
def test_rows_of_the_expansion(scheme):
    rows = draw(width_init=scheme, noise=0.01)["width.0.mlp:m"]
    assert rows.shape == (32, 96) and rows.min() >= 0
    if scheme.startswith("rand"):
        torch.testing.assert_close(rows.sum(1), torch.ones(32))
    else:
        chosen = rows == 1
        assert torch.equal(chosen.sum(1), torch.ones(32, dtype=torch.int64))
        assert len(rows.argmax(1).unique()) > 10
        rest = rows[~chosen]
        assert rest.max() == 0 if scheme == "sel" else 0.005 < rest.max() < 0.01


def test_a_parameters_draw_depends_on_its_name_alone():
    tied, untied = draw(seed=4), draw(seed=4, tied=False)
    depth = [name for name in tied if name.startswith("depth.")]
    assert all(torch.equal(tied[name], untied[name]) for name in depth)
    assert not torch.equal(tied["width.0.attn.q"], tied["width.1.attn.q"])


def test_untied_modules_have_maps_of_their_own():
    old, new = anatomy(small_vit(24, 3, 1)), anatomy(small_vit(32, 4, 1))
    shapes = operator_shapes(old, new, tied=False)
    widths = {name.removeprefix("width.0.") for name in shapes if name.startswith("width.0.")}
    assert widths == {
        *(f"attn.{x}.{side}" for x in "qkv" for side in ("in:d", "out:h k")),
        "attn.proj.in:h k", "attn.proj.out:d", "mlp.fc1.in:d", "mlp.fc1.out:m",
        "mlp.fc2.in:m", "mlp.fc2.out:d", "norm1.out:d", "norm2.out:d",
    }  # fmt: skip
    assert {"width.pos.out:d", "width.head.in:d", "width.patch.out:d"} <= set(shapes)


def test_only_what_grows_has_a_map():
    old, new = anatomy(small_vit(24, 3, 1)), anatomy(small_vit(24, 3, 1, mlp_ratio=5.0))
    shapes = operator_shapes(old, new)
    assert {name: s for name, s in shapes.items() if name.startswith("width.")} == {
        "width.0.mlp:m": (24, 96)
    }


def test_levels_count_within_stages():
    old, new = anatomy(small_vit(depth=2)), anatomy(small_vit(depth=3))
    assert [(x.first, x.old, x.index, x.new) for x in levels(old, new)] == [
        (0, 2, 0, 3), (0, 2, 1, 3), (0, 2, 2, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_expansion_is_a_matrix_along_one_axis(dim):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    added = torch.randn(2, x.shape[dim], generator=generator)
    whole = torch.cat([torch.eye(x.shape[dim], dtype=torch.float64), added.double()])
    wanted = torch.tensordot(whole, x, ([1], [dim % 3])).movedim(0, dim)
    torch.testing.assert_close(expand(x, dim, added), wanted)
