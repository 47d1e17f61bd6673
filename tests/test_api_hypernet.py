"""init_from_hypernet and PITH: what they promise of every call, and every error of theirs."""

import pytest
import timm
import torch
from helpers.hypernet_reference import KINDS, hypernet, task_of
from helpers.models import state_hash, vit

import weightinit as wi
from weightinit.errors import BundleError, ProjectionError
from weightinit.hypernet.files import HyperNetwork
from weightinit.inherit.running import captured


def colour(**changes):
    return vit(in_chans=3, **changes)


def options(net):
    found = {}
    if net.config.kind == "pith":
        found["ancestor"] = colour(embed_dim=32)
    if net.config.task_dim:
        found["task"] = task_of(net)
    return found


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_in_place_deterministic_and_complete(kind):
    net, model, other = hypernet(kind), colour(), colour(depth=3)
    ids = [id(parameter) for parameter in model.parameters()]
    before = torch.get_rng_state()
    assert wi.init_from_hypernet(model, net, **options(net)) is model
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    torch.set_rng_state(before)
    wi.init_from_hypernet(other, net, **options(net))
    assert torch.equal(before, torch.get_rng_state())
    assert ids == [id(parameter) for parameter in model.parameters()]
    assert same(model, other)
    assert model(torch.randn(2, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_meta_models_and_half_precision(kind):
    net = hypernet(kind)
    plain = wi.init_from_hypernet(colour(), net, **options(net))
    meta = wi.init_from_hypernet(colour().to("meta"), net, **options(net))
    assert same(plain, meta) and not next(meta.parameters()).is_meta
    half = wi.init_from_hypernet(colour().bfloat16(), net, **options(net))
    for a, b in zip(plain.parameters(), half.parameters(), strict=True):
        assert b.dtype == torch.bfloat16 and torch.equal(a.bfloat16(), b)


def test_bundles_folders_and_networks_are_the_same(tmp_path):
    net = hypernet()
    bundle = HyperNetwork.of(net)
    bundle.save_pretrained(tmp_path / "logah")
    models = [
        wi.init_from_hypernet(colour(), where)
        for where in (net, bundle, tmp_path / "logah", str(tmp_path / "logah"))
    ]
    assert all(same(models[0], other) for other in models[1:])
    plan = wi.plan_hypernet(colour(), str(tmp_path / "logah"))
    assert "logah" in str(plan.report()) and str(tmp_path / "logah") in str(plan.report())


def test_the_network_is_only_read():
    net, model = hypernet(), colour()
    before = state_hash(net)
    wi.init_from_hypernet(model, net)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert state_hash(net) == before and all(p.grad is None for p in net.parameters())


def test_a_plan_writes_nothing():
    model = colour()
    before = state_hash(model)
    plan = wi.plan_hypernet(model, hypernet()).validate()
    assert state_hash(model) == before
    actions = {row.action for row in plan.report().rows}
    assert actions <= {"written", "fresh"}


def test_keep():
    model = colour()
    old = {name: value.clone() for name, value in model.state_dict().items()}
    wi.init_from_hypernet(model, hypernet(), keep=("head", "blocks.0.norm1.weight"))
    kept = {name for name, value in model.state_dict().items() if torch.equal(old[name], value)}
    assert kept == {"head.weight", "head.bias", "blocks.0.norm1.weight"}
    with pytest.raises(ProjectionError, match="names no parameter"):
        wi.init_from_hypernet(model, hypernet(), keep="tail")


def test_generators():
    changes = {"class_token": True, "global_pool": "token"}
    tokens, nets = [], hypernet()
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        model = wi.init_from_hypernet(colour(**changes), nets, generator=generator)
        tokens.append(model.cls_token.detach().clone())
    assert torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])


def test_tasks_are_embeddings_or_images():
    ancestor, net = colour(embed_dim=12, num_heads=2), hypernet("tal")
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), captured(ancestor) as found:
        ancestor(images)
        embedding = found.pop().mean(0)
    models = [
        wi.init_from_hypernet(colour(), net, task=task, ancestor=ancestor)
        for task in (embedding, images, [images[:2], images[2:]], iter(images.split(3)))
    ]
    for other in models[1:]:
        for a, b in zip(models[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    changed = wi.init_from_hypernet(colour(), net, task=embedding + 1)
    assert not same(models[0], changed)
    assert ancestor.training is False


def test_pith_by_either_name():
    changes = {"class_token": True, "global_pool": "token"}
    net, ancestor = hypernet("pith"), colour(embed_dim=32, **changes)
    one = wi.init_from_hypernet(colour(**changes), net, ancestor=ancestor)
    two = wi.project_from(ancestor, colour(**changes), method=wi.PITH(net))
    assert same(one, two)
    faithful = wi.project_from(ancestor, colour(**changes), method=wi.PITH(net, faithful=True))
    assert not torch.equal(one.pos_embed, faithful.pos_embed)


def test_doubts_are_reported():
    plan = wi.plan_hypernet(colour(depth=1), hypernet("pith"), ancestor=colour(depth=6))
    assert "depth differs" in str(plan.report())


class Odd(torch.nn.Module):
    """A ViT with a layer of its own."""

    def __init__(self):
        super().__init__()
        self.vit = colour()
        self.memory = torch.nn.Parameter(torch.ones(3, 5))


def refused():
    """Every call that must raise: model, arguments, error, words."""
    pith, tal, logah = hypernet("pith"), hypernet("tal"), hypernet("logah")
    small = hypernet("logah", max_shape=(8, 8, 4))
    narrow = hypernet("logah", max_ck=64)
    cait = timm.create_model("cait_xxs24_224", img_size=32, depth=2, embed_dim=16, num_heads=2)
    hybrid = timm.create_model("vit_tiny_r_s16_p8_224", img_size=32, depth=1, num_classes=3)
    yield "token blocks", cait, logah, {}, ProjectionError, "token_blocks.*use a plain ViT"
    yield "convolutions", hybrid, logah, {}, ProjectionError, "patch_embed.backbone.*use a plain"
    yield "unknown layer", Odd(), logah, {}, wi.AnatomyError, "memory"
    yield "beyond max_shape", colour(), small, {}, ProjectionError, "both axes, 8x8: use a smaller"
    yield "beyond max_ck", colour(), narrow, {}, ProjectionError, "the decoder has 64: use"
    yield "no task", colour(), tal, {}, ProjectionError, "needs a task: pass task="
    short = {"task": torch.ones(5)}
    yield "task of 5", colour(), tal, short, ProjectionError, r"\(5,\): use one of \(12,\)"
    yield "needless task", colour(), logah, short, ProjectionError, "takes none"
    images = {"task": torch.ones(2, 3, 8, 8)}
    yield "images alone", colour(), tal, images, ProjectionError, "pass ancestor="
    wide = images | {"ancestor": colour(embed_dim=14)}
    yield "other ancestor", colour(), tal, wide, ProjectionError, r"\(14,\): use one of \(12,\)"
    none = {"task": [], "ancestor": colour(embed_dim=12)}
    yield "no images", colour(), tal, none, ProjectionError, "at least one batch"
    yield "no ancestor", colour(), pith, {}, ProjectionError, "pass ancestor="
    gated = timm.create_model(
        "eva02_tiny_patch14_224", img_size=28, depth=1, embed_dim=24, num_heads=2
    )
    other = {"ancestor": gated}
    yield "other blocks", colour(), pith, other, ProjectionError, "blocks are of other parts"
    heads = {"ancestor": colour(num_heads=4)}
    yield "other heads", colour(), pith, heads, ProjectionError, "build the target with 4 heads"
    deep = {"ancestor": colour(depth=2), "faithful": True}
    yield "deeper, faithful", colour(), pith, deep, ProjectionError, "use faithful=False"
    yield "no such file", colour(), "no-such-hypernet", {}, BundleError, "no bundle"
    yield "a template", colour(), "digits-w32", {}, BundleError, "HyperNetwork reads"
    keep = {"keep": "tail"}
    yield "keeps nothing", colour(), logah, keep, ProjectionError, "names no parameter"
    broken = hypernet("logah", seed=1)
    with torch.no_grad():
        broken.decoder.l2.bias[0] = float("nan")
    yield "not finite", colour(), broken, {}, ProjectionError, "not finite"


@pytest.mark.parametrize("case", list(refused()), ids=lambda case: case[0])
def test_errors_name_what_to_do_and_nothing_is_written(case):
    _, model, net, arguments, error, words = case
    before = state_hash(model)
    with pytest.raises(error, match=words):
        wi.init_from_hypernet(model, net, **arguments)
    assert state_hash(model) == before
    meta = {name: p.is_meta for name, p in model.named_parameters()}
    assert not any(meta.values())


def test_pith_refuses_what_inherits_nothing():
    model = colour()
    before = state_hash(model)
    with pytest.raises(ProjectionError, match=r"kind 'logah'.*use wi.init_from_hypernet"):
        wi.project_from(colour(), model, method=wi.PITH(hypernet("logah")))
    assert state_hash(model) == before


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2(tied):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "vocab_size": 40}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, tie_word_embeddings=tied))
    wi.init_from_hypernet(model, hypernet())
    own = model.transformer.wte.weight
    assert (model.lm_head.weight is own) == tied
    assert model(torch.arange(8)[None]).logits.isfinite().all()
