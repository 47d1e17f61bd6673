"""Pre-training under a constraint by any loss."""

import signal
from dataclasses import replace

import pytest
import timm
import torch
from torch.nn import functional

import weightinit as wi
from weightinit.errors import WeightInitError
from weightinit.training.data import load_data
from weightinit.training.pretrain import TrainingConfig, pretrain

SIZE = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10, "class_token": False}
CONFIG = TrainingConfig(6, lr=1e-3, clip_grad=1.0)


def build(depth=3, width=32, heads=2):
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", **SIZE, global_pool="avg", embed_dim=width, depth=depth,
        num_heads=heads,
    )  # fmt: skip


def plain(**options):
    return wi.constrain(build(), wi.TemplateConfig.wave(32), **options)


def nested(policy="half"):
    model = build()
    return wi.constrain(
        model,
        wi.TemplateConfig.of(wi.anatomy(model), layers=2, method="weit"),
        sizes=wi.Sizes(depths=(1, 2), widths=(0.5,), policy=policy),
        build=lambda size: build(size.depth, size.width, size.heads),
    )


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture
def labels(digits):
    """Behaviour of a task of one's own: a batch by the generator, noise from the global one."""

    def step(module, generator):
        rows = torch.randint(len(digits.train), (16,), generator=generator)
        images = digits.normalise(digits.train.images[rows])
        out = module(images + 0.1 * torch.randn_like(images))
        return functional.cross_entropy(out, digits.train.labels[rows])

    return step


def bits(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("make", [plain, nested, lambda: nested("sandwich")])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_killed_run_resumes_bit_for_bit(labels, tmp_path, make, ema):
    config = replace(CONFIG, ema=ema)
    whole, cut, resumed = make(), make(), make()
    pretrain(whole, labels, config)
    calls = []

    def mortal(module, generator):
        calls.append(1)
        if len(calls) == 6:
            raise KeyError
        return labels(module, generator)

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        pretrain(cut, mortal, config, out=tmp_path, save_every=2)
    history = pretrain(resumed, labels, config, out=tmp_path, save_every=2, resume=True)
    assert torch.equal(before, torch.get_rng_state())
    assert equal(bits(resumed), bits(whole)) and history.rows[-1]["step"] == 6
    if ema:
        raw = make()
        pretrain(raw, labels, CONFIG)
        assert not equal(bits(raw), bits(whole))


def test_a_sandwich_takes_two_passes_on_the_same_draws(labels):
    module, seen = nested("sandwich"), []

    def step(module, generator):
        seen.append((generator.initial_seed(), float(torch.rand(()))))
        return labels(module, generator)

    pretrain(module, step, replace(CONFIG, steps=3))
    assert len(seen) == 6 and module.calls == 6
    assert seen[0::2] == seen[1::2] and len(set(seen)) == 3


def test_templates_scalers_and_the_rest_are_trained_and_scored(labels, digits):
    module = nested()
    before = bits(module)
    history = pretrain(
        module, labels, CONFIG, score=lambda m: {"val": digits.score(m), "val small": 1.0}
    )
    moved = {name for name, value in bits(module).items() if not torch.equal(value, before[name])}
    assert all(name in moved for name, _ in module.named_parameters())
    assert history.val == digits.score(module)
    assert history.rows[-1]["val small"] == 1.0


def test_scalers_have_a_rate_of_their_own(labels):
    still, half = plain(), plain()
    start = bits(still)
    pretrain(still, labels, replace(CONFIG, steps=1, scaler_lr=0.0))
    pretrain(half, labels, replace(CONFIG, steps=1, scaler_lr=0.5, weight_decay=0.0))
    moves = {name: (value - start[name]).abs().max() for name, value in bits(half).items()}
    for name, value in bits(still).items():
        if name.startswith("scalers."):
            assert torch.equal(value, start[name])
    # the first step of Adam moves by the rate, whatever the gradient is
    name = "attn_proj_weight"
    ratio = moves[f"scalers.{name}"] / moves[f"templates.{name}"]
    assert ratio == pytest.approx(0.5, rel=0.05)


def test_the_average_is_that_of_the_steps(labels):
    """Of two steps with decay a: a^2 w0 + a (1 - a) w1 + (1 - a) w2, from the start w0."""
    seen = []
    raw = plain()

    def step(module, generator):
        seen.append({n: p.detach().clone() for n, p in module.named_parameters()})
        return labels(module, generator)

    pretrain(raw, step, replace(CONFIG, steps=2))
    seen.append({n: p.detach().clone() for n, p in raw.named_parameters()})
    module = plain()
    pretrain(module, labels, replace(CONFIG, steps=2, ema=0.75))
    for name, value in module.named_parameters():
        w0, w1, w2 = (one[name] for one in seen)
        expected = 0.75**2 * w0 + 0.75 * 0.25 * w1 + 0.25 * w2
        torch.testing.assert_close(value.detach(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "result", [None, 1.0, torch.ones(2, requires_grad=True), torch.tensor(1.0)]
)
def test_what_is_no_loss_is_refused(result):
    with pytest.raises(WeightInitError, match=r"train_step returned .*: return the loss"):
        pretrain(plain(), lambda *_: result, CONFIG)


def test_ctrl_c_finishes_the_step_saves_it_and_says_how_to_go_on(labels, tmp_path):
    whole, cut = plain(), plain()
    pretrain(whole, labels, CONFIG)
    calls = []

    def step(module, generator):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return labels(module, generator)

    with pytest.raises(KeyboardInterrupt, match=r"after step 3 of 6.*--resume"):
        pretrain(cut, step, CONFIG, out=tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = plain()
    pretrain(resumed, labels, CONFIG, out=tmp_path, resume=True)
    assert equal(bits(resumed), bits(whole))
