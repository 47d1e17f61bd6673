import torch
from helpers.inherit import small_vit
from helpers.models import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.eva import Eva

from weightinit.anatomy import anatomy
from weightinit.inherit.copies import Copies, Copying
from weightinit.inherit.growth import Growth
from weightinit.inherit.transfer import Place


def copying(old, new):
    return Copying(
        Growth("lemon", anatomy(old), anatomy(new)), lambda _, size, more: torch.arange(more) % size
    )


@given(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=9), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_shares_of_a_channel_sum_to_what_read_it(old, more, uneven):
    index = torch.tensor([*range(old), *(i % old for i in more)])
    copies = Copies(index)
    weight = draw(3, old)
    added = (lambda even: draw(*even.shape, seed=1)) if uneven else None
    shares = copies.share(weight, 1, added)
    sums = torch.zeros_like(weight).index_add_(1, index, shares)
    torch.testing.assert_close(sums, weight, atol=1e-14, rtol=0)
    for channel in range(old):
        turns = copies.turns[index == channel]
        assert turns.tolist() == list(range(len(turns)))
        assert (copies.counts[index == channel] == len(turns)).all()


def test_whole_heads_are_copied():
    seen = copying(small_vit(24, 3), small_vit(40, 5))
    assert seen.of("h k").index.tolist() == [*range(24), *range(16)]
    assert seen.uneven("h k") and not seen.uneven("t")
    assert seen("n", Place("head.weight")) is None


def test_products_of_queries_and_keys_are_kept_where_heads_grow():
    """(q' . k') / sqrt(k') = (q . k) / sqrt(k), however often each of the dims is copied."""
    seen = copying(small_vit(24, 3), small_vit(36, 3))
    q, k = draw(24), draw(24, seed=1)
    wide = [
        seen("h k", Place(f"attn.{x}.bias", 0)).rows(value, 0) for x, value in (("q", q), ("k", k))
    ]
    before = (q * k).view(3, 8).sum(1) / 8**0.5
    after = (wide[0] * wide[1]).view(3, 12).sum(1) / 12**0.5
    torch.testing.assert_close(after, before)
    value = seen("h k", Place("attn.v.bias", 0)).rows
    assert torch.equal(value, seen.of("h k").index)


def test_rows_that_make_queries_and_keys_of_a_norm_are_not_scaled_twice():
    """The norm of q and k takes away a scale before it, so that its own gain must hold it."""
    seen = copying(*(small_vit(width, 3, qk_norm=True) for width in (24, 48)))
    before = seen("h k", Place("attn.q.weight", 0)).rows
    assert torch.equal(before, seen.of("h k").index)
    gain = seen("k", Place("attn.q_norm.weight", 0)).op("gain")(torch.ones(8), 0)
    torch.testing.assert_close(gain, torch.full((16,), 0.5**0.25))


def test_copies_of_a_query_head_are_served_by_copies_of_its_own_key_value_head():
    sizes = {"img_size": 16, "patch_size": 8, "num_classes": 5, "depth": 1, "qkv_fused": False}
    old, new = (
        Eva(**sizes, embed_dim=8 * h, num_heads=h, num_kv_heads=e, attn_type="rope")
        for h, e in ((4, 2), (9, 3))
    )
    seen = copying(old, new)
    heads, groups = seen.of("h").index, seen.of("e").index
    assert torch.equal(heads // 2, groups.repeat_interleave(3))
