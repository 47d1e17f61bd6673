import pytest
import torch
from helpers.inherit import bert, fill, says, small_vit
from helpers.models import draw
from timm.models.eva import Eva

import weightinit as wi
from weightinit.anatomy import Labels, anatomy
from weightinit.inherit.copies import Copying
from weightinit.inherit.growth import Growth
from weightinit.inherit.transfer import Place


def copying(old, new):
    return Copying(Growth("lemon", anatomy(old), anatomy(new)))


def test_whole_heads_are_copied():
    seen = copying(small_vit(24, 3), small_vit(40, 5))
    assert seen.of(Labels("hk")).index.tolist() == [*range(24), *range(16)]
    assert seen.uneven(Labels("hk")) and not seen.uneven(Labels("t"))
    assert seen(Labels("n"), Place("head.weight")) is None


def test_products_of_queries_and_keys_are_kept_where_heads_grow():
    """(q' . k') / sqrt(k') = (q . k) / sqrt(k), however often each of the dims is copied."""
    seen = copying(small_vit(24, 3), small_vit(36, 3))
    q, k = draw(24), draw(24, seed=1)
    wide = [
        seen(Labels("hk"), Place(f"attn.{x}.bias", 0)).rows(value, 0)
        for x, value in (("q", q), ("k", k))
    ]
    before = (q * k).view(3, 8).sum(1) / 8**0.5
    after = (wide[0] * wide[1]).view(3, 12).sum(1) / 12**0.5
    torch.testing.assert_close(after, before)
    value = seen(Labels("hk"), Place("attn.v.bias", 0)).rows
    assert torch.equal(value, seen.of(Labels("hk")).index)


def test_rows_that_make_queries_and_keys_of_a_norm_are_not_scaled_twice():
    """The norm of q and k takes away a scale before it, so that its own gain must hold it."""
    seen = copying(*(small_vit(width, 3, qk_norm=True) for width in (24, 48)))
    before = seen(Labels("hk"), Place("attn.q.weight", 0)).rows
    assert torch.equal(before, seen.of(Labels("hk")).index)
    gain = seen(Labels("k"), Place("attn.q_norm.weight", 0)).op("gain")(torch.ones(8), 0)
    torch.testing.assert_close(gain, torch.full((16,), 0.5**0.25))


def test_copies_of_a_query_head_are_served_by_copies_of_its_own_key_value_head():
    pytest.importorskip("timm", minversion="1.0.30", reason="no grouped queries before")
    sizes = {"img_size": 16, "patch_size": 8, "num_classes": 5, "depth": 1, "qkv_fused": False}
    old, new = (
        Eva(**sizes, embed_dim=8 * h, num_heads=h, num_kv_heads=e, attn_type="rope")
        for h, e in ((4, 2), (9, 3))
    )
    seen = copying(old, new)
    heads, groups = seen.of(Labels("h")).index, seen.of(Labels("e")).index
    assert torch.equal(heads // 2, groups.repeat_interleave(3))


@pytest.mark.parametrize("method", [wi.LEMON(), wi.Net2Net(), wi.HyperCloning()])
def test_the_norm_before_a_tied_head_is_shared_for_it(method):
    """The head reads the copies of the embedding undivided, BERT's after a norm of its own."""
    ancestor, model = bert(16, True), bert(32, True)
    fill(model, ancestor, method)
    torch.testing.assert_close(says(model), says(ancestor), atol=1e-10, rtol=0)
