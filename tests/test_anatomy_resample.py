import pytest
import timm
import torch

from weightinit import ProjectionError
from weightinit.anatomy import resample_patch, resample_pos
from weightinit.anatomy.resample import resample_axis, resample_table

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("new_grid", [(4, 6), (7, 5), (2, 2)])
@pytest.mark.parametrize(("old", "new"), [(0, 0), (1, 1), (1, 3), (3, 1), (0, 2), (2, 0)])
def test_positions(dtype, new_grid, old, new):
    pos = draw(old + 24, 8, dtype=dtype)
    result = resample_pos(pos, (4, 6), new_grid, old, new)
    assert (result.shape, result.dtype) == ((new + new_grid[0] * new_grid[1], 8), dtype)
    kept = min(old, new)
    assert torch.equal(result[:kept], pos[:kept])
    assert not result[kept:new].any()
    # timm itself, given the same prefix on both sides.
    expected = timm.layers.resample_abs_pos_embed(
        pos[None], list(new_grid), [4, 6], num_prefix_tokens=old
    )
    assert torch.equal(result[new:], expected[0, old:])


def test_positions_of_the_same_grid_are_a_copy():
    pos = draw(1 + 16, 8, dtype=torch.float64)
    result = resample_pos(pos, (4, 4), (4, 4), 1, 1)
    assert torch.equal(result, pos)
    result.zero_()
    assert pos.any()


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ProjectionError, match="1 prefix rows"):
        resample_pos(torch.zeros(16, 8), (4, 4), (2, 2), 1)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (2, 3)])
def test_patches(dtype, size):
    weight = draw(5, 3, 4, 4, dtype=dtype)
    result = resample_patch(weight, size, 3)
    assert (result.shape, result.dtype) == ((5, 3, *size), dtype)
    assert torch.equal(result, timm.layers.resample_patch_embed(weight, list(size)))
    assert result.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_three_channels_become_others_as_in_timm(channels):
    weight = draw(5, 3, 4, 4)
    expected = timm.models.adapt_input_conv(channels, weight)
    assert torch.equal(resample_patch(weight, (4, 4), channels), expected)


@pytest.mark.parametrize("old", [1, 2, 4, 5])
@pytest.mark.parametrize("new", [1, 2, 3, 7, 10])
def test_other_channels_keep_their_sum(old, new):
    weight = draw(5, old, 4, 4, dtype=torch.float64)
    result = resample_patch(weight, (4, 4), new)
    assert result.shape == (5, new, 4, 4)
    torch.testing.assert_close(result.sum(1), weight.sum(1), rtol=1e-12, atol=1e-12)
    assert result.data_ptr() != weight.data_ptr()
    if old == 1:
        torch.testing.assert_close(result, (weight / new).expand_as(result))


@pytest.mark.parametrize(
    ("shape", "size", "channels"), [((8, 3), (2, 2), 3), ((8, 3, 2, 2), (0, 2), 3)]
)
def test_what_is_no_patch_embedding_is_refused(shape, size, channels):
    with pytest.raises(ProjectionError, match="cannot be resampled"):
        resample_patch(torch.zeros(shape), size, channels)


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("old", [(4, 4), (3, 5)])
@pytest.mark.parametrize("new", [(4, 4), (6, 6), (2, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables(extra, old, new, dtype):
    def rows(grid):
        return (2 * grid[0] - 1) * (2 * grid[1] - 1)

    table = draw(rows(old) + extra, 2, dtype=dtype)
    result = resample_table(table, old, new, rows(new) + extra)
    assert (result.shape, result.dtype) == ((rows(new) + extra, 2), dtype)
    # No offset and the token's own rows stay.
    middle = rows(new) // 2, rows(old) // 2
    torch.testing.assert_close(result[middle[0]], table[middle[1]])
    if extra:
        assert torch.equal(result[-3:], table[-3:])
    constant = resample_table(torch.ones_like(table), old, new, rows(new) + extra)
    torch.testing.assert_close(constant, torch.ones_like(constant))
    assert result.data_ptr() != table.data_ptr()
    if old == new:
        assert torch.equal(result, table)
    if old[0] == old[1]:
        assert torch.equal(resample_table(table, None, new, rows(new) + extra), result)


def test_rows_of_the_class_token_come_and_go():
    table = draw(49 + 3, 2)
    assert torch.equal(resample_table(table, (4, 4), (4, 4), 49), table[:49])
    more = resample_table(table[:49], (4, 4), (4, 4), 52)
    assert torch.equal(more[:49], table[:49]) and not more[49:].any()


@pytest.mark.parametrize(
    ("rows", "old", "new", "wanted"),
    [(50, None, (4, 4), 49), (60, (4, 4), (4, 4), 49), (49, (4, 4), (4, 4), 40)],
)
def test_what_is_no_table_is_refused(rows, old, new, wanted):
    with pytest.raises(ProjectionError, match=r"cannot be resampled.*img_size and patch_size"):
        resample_table(torch.zeros(rows, 2), old, new, wanted)


def test_offsets_along_one_axis():
    table = torch.arange(7.0)[:, None]
    assert torch.equal(resample_axis(table, 7), table)
    assert resample_axis(table, 7).data_ptr() != table.data_ptr()
    torch.testing.assert_close(resample_axis(table, 21)[1::3], table)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_video_patch_answers_a_still_video_as_the_image_patch(dtype):
    weight = draw(8, 3, 4, 4, dtype=dtype)
    inflated = resample_patch(weight, (2, 4, 4), 3)
    assert torch.equal(inflated[:, :, 0] + inflated[:, :, 1], weight)
    assert torch.equal(resample_patch(inflated, (4, 4), 3), weight)
    assert torch.equal(resample_patch(inflated, (2, 4, 4), 3), inflated)
    torch.testing.assert_close(resample_patch(inflated, (4, 4, 4), 3).sum(2), weight)
    assert resample_patch(inflated, (3, 8, 6), 1).shape == (8, 1, 3, 8, 6)
