import pytest
import torch
from helpers.inherit import small_vit
from helpers.models import draw

from weightinit.anatomy import anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.inherit.running import Running
from weightinit.methods.activation.head import fit_head, readers
from weightinit.methods.activation.stream import principal

IMAGES = [draw(30, 3, 16, 16, seed=seed) for seed in (1, 2)]


@torch.no_grad()
def fitted(old, new, stream):
    """Values of the head, the norm's bias, and what the target says of its stream."""
    running = Running(Ancestor.open(old), IMAGES)
    theirs = []
    for number in range(len(IMAGES)):
        x, blocks = running.trace(number)
        for block in blocks:
            x = block(x)
        theirs.append(x)
    after = [x @ stream.write.T @ stream.read.T for x in theirs]
    values, shift = fit_head(running, anatomy(new), stream, theirs, after, ridge=1e-6)
    return values, shift, after


@pytest.mark.parametrize(
    "options", [{}, {"class_token": False, "global_pool": "avg"}, {"fc_norm": True}]
)
def test_at_full_size_the_gain_is_folded(options):
    old = small_vit(**options).double()
    norm = old.norm if isinstance(old.norm, torch.nn.LayerNorm) else old.fc_norm
    eye = torch.eye(24, dtype=torch.float64)
    values, shift, _ = fitted(old, old, principal(eye, 24, centred=True))
    torch.testing.assert_close(values["head.weight"], old.head.weight * norm.weight)
    torch.testing.assert_close(values["head.bias"], old.head.bias + old.head.weight @ norm.bias)
    assert not shift.any()


def test_a_smaller_head_is_the_least_squares_of_what_it_reads():
    old, new = small_vit(24, 3).double(), small_vit(16, 2)
    stream = principal(torch.eye(24, dtype=torch.float64), 16, centred=True)
    values, _, after = fitted(old, new, stream)
    with torch.no_grad():
        wanted = torch.cat([old(images) for images in IMAGES])
        x = torch.nn.functional.layer_norm(
            torch.cat(after)[:, 0] @ stream.write.T, (16,), eps=old.norm.eps
        )
    rows = torch.cat([x, torch.ones(len(x), 1)], 1)
    best = rows @ torch.linalg.lstsq(rows, wanted).solution
    ours = x @ values["head.weight"].T + values["head.bias"]
    torch.testing.assert_close(ours, best, rtol=0, atol=1e-3)


def test_heads_of_other_classes_and_none_at_all_are_not_fitted():
    old, other = anatomy(small_vit()), anatomy(small_vit(num_classes=7))
    assert list(readers(old, old)) == ["head.weight"]
    assert not readers(old, other)
    same = principal(torch.eye(24, dtype=torch.float64), 24, centred=True)
    values, shift, _ = fitted(small_vit().double(), small_vit(num_classes=7), same)
    assert values == {}
    assert not shift.any()
