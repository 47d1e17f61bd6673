import pytest

from weightinit import AnatomyError
from weightinit.anatomy.pattern import parse, solve


def test_parse():
    assert parse("(3 h k) d").axes == ((("3", "h", "k"),), (("d",),))
    assert parse("d (h k + m)").axes == ((("d",),), (("h", "k"), ("m",)))
    assert parse("").axes == ()
    assert parse("(gh gw) d1").labels == {"gh", "gw", "d1"}


@pytest.mark.parametrize("bad", ["(h k", "d )", "()", "d (h + )", "((h) k)", "0 d", "-1 d", "a.b"])
def test_malformed_patterns_are_refused(bad):
    with pytest.raises(AnatomyError, match="malformed"):
        parse(bad)


def test_sums_stand_in_one_axis_only():
    with pytest.raises(AnatomyError, match="two axes"):
        parse("(a + b) (c + d)")


def test_terms_name_the_fused_axis_and_its_parts():
    assert parse("d (2 m)").terms(2) == (1, ((("d",), ("m",)),) * 2)
    assert parse("(m + h k) d").terms(2) == (0, ((("m",), ("d",)), (("h", "k"), ("d",))))
    assert parse("2 b").terms() == (-1, ((("2",), ("b",)),))


@pytest.mark.parametrize(
    ("pattern", "shape", "known", "found"),
    [
        ("(3 h k) d", (576, 192), {"h": 3}, {"k": 64, "d": 192}),
        ("(3 h k) d", (576, 192), {}, {"d": 192}),  # h and k stay open
        ("(3 h k) d", (577, 192), {"h": 3}, None),  # not divisible
        ("(3 h k) d", (576, 192), {"d": 191}, None),  # another size
        ("d d", (4, 4), {}, {"d": 4}),
        ("d d", (4, 5), {}, None),
        ("d c", (4, 5, 6), {}, None),  # another number of axes
        ("2 m", (3, 5), {}, None),
        ("(m + h k + h k) d", (22, 3), {"h": 2, "k": 3}, {"m": 10, "d": 3}),
        ("(m + h k) d", (6, 3), {"h": 2, "k": 3}, None),  # nothing is left for m
        ("(h k) k", (6, 3), {}, {"h": 2, "k": 3}),  # the second axis tells about the first
        ("", (), {}, {}),
    ],
)
def test_solve(pattern, shape, known, found):
    assert solve(pattern, shape, known) == found
