from collections import OrderedDict

import pytest
import torch
from helpers.inherit import randomise, small_vit
from helpers.models import draw
from torch import nn

import weightinit as wi
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


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 8, batch_first=True)
        names = {"c_fc": nn.Linear(width, 4 * width), "gelu": nn.GELU()}
        self.mlp = nn.Sequential(OrderedDict(**names, c_proj=nn.Linear(4 * width, width)))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    """OpenAI's vision tower: what reads the features is a bare parameter of the model."""

    def __init__(self, width, depth, side=16, last=lambda x: x):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((side // 8) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Layer(width) for _ in range(depth))
        self.proj, self.last = nn.Parameter(torch.zeros(width, 12)), last

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.last(self.ln_post(x[:, 0]) @ self.proj)


@pytest.mark.parametrize("side", [16, 24])  # pictures as wide as the stream may pass for it
def test_a_bare_matrix_reads_what_it_is_given_and_not_the_picture(side):
    old, new, ranked = Tower(24, 3, side), Tower(16, 2, side), Tower(16, 2, side)
    for seed, model in enumerate((old, new, ranked)):
        randomise(model, seed)
    batches = [draw(32, 3, side, side, seed=seed).float() for seed in range(4)]
    wi.project_from(old, new, calibration=batches)
    wi.project_from(old, ranked, method="subcloning", calibration=batches)
    x = draw(64, 3, side, side, seed=9).float()
    with torch.no_grad():
        near, far = ((model(x) - old(x)).norm() for model in (new, ranked))
    assert near < 0.7 * far


def test_a_bare_matrix_that_is_not_the_last_is_refused():
    old, new = randomise(Tower(24, 3, last=torch.tanh)), randomise(Tower(16, 2))
    with pytest.raises(wi.ProjectionError, match="not what proj is multiplied with"):
        wi.project_from(old, new, method="activation", calibration=[x.float() for x in IMAGES])
