import pytest
import timm
from helpers.inherit import small_vit

import weightinit as wi
from weightinit.anatomy import Difference, anatomy


def test_what_grows_and_what_shrinks_is_named():
    old, new = anatomy(small_vit(24, 3, 2)), anatomy(small_vit(16, 2, 3, mlp_ratio=8.0))
    difference = Difference(old, new)
    assert difference.grown == {"m": (96, 128), "depth": (2, 3)}
    assert difference.shrunk == {"d": (24, 16), "h": (3, 2)}
    assert difference.wider.keys() == {"d", "h", "m"}


def test_refusals_name_every_size_and_what_to_do():
    difference = Difference(anatomy(small_vit(24, 3, 2)), anatomy(small_vit(16, 2, 3)))
    with pytest.raises(wi.ProjectionError, match=r"it only shrinks.*depth 2 -> 3.*'auto'"):
        difference.forbid_growth("it")
    with pytest.raises(wi.ProjectionError, match=r"it only grows.*d 24 -> 16.*'auto'"):
        difference.forbid_shrinking("it")


def test_grouped_heads_and_stages_have_widths():
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
    assert anatomy(model).widths.keys() >= {"d0", "d3", "m0", "m3"}
