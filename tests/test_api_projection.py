"""project_from as a user calls it: what fits, what is refused, and what stays as it was."""

import hashlib
import warnings

import pytest
import timm
import torch
from helpers.inherit import logits, randomise, small_vit
from safetensors.torch import save_file

import weightinit as wi
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.registry import METHODS, get_method


def images(number=16, batches=6, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(number, 3, 16, 16, generator=generator) for _ in range(batches)]


def snapshot(model):
    """All that a failed call must leave alone."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return (
        [(name, id(x), x.requires_grad, x.detach().clone()) for name, x in named],
        [module.training for module in model.modules()],
    )


def assert_untouched(model, before):
    tensors, modes = snapshot(model)
    assert modes == before[1] and len(tensors) == len(before[0])
    for (*now, value), (*then, old) in zip(tensors, before[0], strict=True):
        assert now == then and torch.equal(value, old), now


def refuse(ancestor, model, error, match, **options):
    """Assert that a call is refused in words, and leaves target and global state alone."""
    model.train()
    model.pos_embed.requires_grad_(False) if hasattr(model, "pos_embed") else None
    before, state = snapshot(model), torch.get_rng_state()
    with pytest.raises(error, match=match) as caught:
        wi.project_from(ancestor, model, **options)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    # Each message says what is wrong, and then what to do.
    assert any(mark in str(caught.value) for mark in (": ", "; ", ". "))


def digest(model):
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.detach().numpy().tobytes())
    return found.hexdigest()


def family(name):
    import transformers

    text = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0}
    if name == "bert":
        config = transformers.BertConfig(
            hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=48, **text
        )
        return transformers.BertModel(config)
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=24, n_head=3, n_layer=2, n_positions=16, **text)
        return transformers.GPT2LMHeadModel(config)
    return timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "convnext"])
@pytest.mark.parametrize("turned", [False, True])
def test_another_family(name, turned):
    pair = small_vit(), family(name)
    ancestor, model = reversed(pair) if turned else pair
    words = (name, "vit") if turned else ("vit", name)
    refuse(
        ancestor, model, wi.ProjectionError,
        rf"a {words[0]} has no weights for a {words[1]}: use an ancestor",
    )  # fmt: skip


def test_a_model_that_nobody_knows():
    resnet = timm.create_model("resnet10t")
    refuse(resnet, small_vit(), wi.AnatomyError, r"44 of 44 parameters.*rules=\[Rule")
    refuse(small_vit(), resnet, wi.AnatomyError, r"44 of 44 parameters.*rules=\[Rule")


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("heads", [(6, 3), (3, 6)])
def test_other_heads_of_the_same_shapes(method, heads):
    ancestor, model = (small_vit(24, number) for number in heads)
    assert [p.shape for p in ancestor.parameters()] == [p.shape for p in model.parameters()]
    refuse(
        ancestor, model, wi.ProjectionError,
        rf"{heads[0]} heads of .* the target {heads[1]} of .* another; build the target with",
        method=method, calibration=images(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocks.1.attn.qkv.weight", r"attn\.k\.weight of block 1"),
        ("blocks.1.mlp.fc2.bias", r"mlp\.fc2\.bias of block 1"),
        ("blocks.0.norm1.weight", r"norm1\.weight of block 0"),
        ("norm.weight", r"norm\.weight"),
        ("head.weight", r"head\.weight"),
        ("pos_embed", "pos,"),
        ("cls_token", r"token\.cls"),
        ("patch_embed.proj.weight", r"patch\.weight"),
    ],
)
@pytest.mark.parametrize("bare", ["state dict", "file"])
def test_missing_tensors(name, words, bare, tmp_path):
    state = {k: v for k, v in small_vit(depth=3).state_dict().items() if k != name}
    if bare == "file":
        save_file(state, tmp_path / "bare.safetensors")
        state = tmp_path / "bare.safetensors"
    ancestor = wi.Ancestor.open(state, heads=3)
    refuse(ancestor, small_vit(), wi.ProjectionError, rf"lacks {words}.*pass all of its state dict")


def test_missing_blocks_and_what_is_no_state_dict():
    model, state = small_vit(), small_vit(depth=3).state_dict()
    lacking = {k: v for k, v in state.items() if not k.startswith("blocks.1.")}
    with pytest.raises(wi.AnatomyError, match=r"blocks \[1\].*pass the whole model"):
        wi.Ancestor.open(lacking, heads=3)
    refuse(state, model, wi.ProjectionError, r"attention heads: pass weightinit.Ancestor.open")
    refuse({"model": state}, model, wi.AnatomyError, r"model: no tensors; pass the state dict")
    refuse({}, model, wi.AnatomyError, "any model known")
    refuse(None, model, wi.ProjectionError, "NoneType is no ancestor: pass a module")


def test_what_an_ancestor_may_lack():
    """A head, biases that no block has: they are fresh, and the report says so."""
    state = small_vit(qkv_bias=False).state_dict()
    state = {k: v for k, v in state.items() if not k.startswith("head")}
    ancestor = wi.Ancestor.open(state, heads=3)
    rows = wi.plan_projection(ancestor, small_vit()).report().rows
    assert {row.role for row in rows if row.action == "fresh"} == {
        "attn.qkv.bias", "head.weight", "head.bias",
    }  # fmt: skip
    # A module without a class token is another architecture, and no damage.
    pooled = small_vit(class_token=False, global_pool="avg", fc_norm=False)
    with pytest.warns(UserWarning, match=r"pooling differs \(avg in the ancestor"):
        wi.project_from(pooled, small_vit())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["blocks.2.mlp.fc1.weight", "norm.bias", "blocks.0.attn.qkv.bias"])
def test_values_that_are_not_finite(value, name, tmp_path):
    ancestor, model = small_vit(24, 3, 3), small_vit(16, 2, 2)
    with torch.no_grad():
        ancestor.get_parameter(name).view(-1)[0] = value
    state = ancestor.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    words = rf"{name} of .* holds NaN or infinity: take"
    bare = wi.Ancestor.open(state, heads=3)
    stored = wi.Ancestor.open(tmp_path / "a.safetensors", heads=3)
    for source in (ancestor, bare, stored):
        refuse(source, model, wi.BundleError, words)
    for method in ("activation", "subcloning"):
        # Attention may hide a NaN, so it is looked for in the weights.
        refuse(ancestor, model, wi.BundleError, words, method=method, calibration=images())
    refuse(ancestor, small_vit(48, 6, 4), wi.BundleError, words, method="lemon")


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_truncated_file(kept, kind, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(small_vit().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    ancestor = path if kind == "file" else tmp_path
    refuse(ancestor, small_vit(), wi.BundleError, "model.safetensors.*cut off.*download or save it")


@pytest.mark.parametrize("name", ["m.pt", "m.bin", "m.pth", "m.ckpt", "model.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle(name, zipped, tmp_path):
    path = tmp_path / name
    torch.save(small_vit().state_dict(), path, _use_new_zipfile_serialization=zipped)
    words = "is a pickle or an archive.*pass the module, or save it as safetensors"
    for ancestor in (path, str(path)):
        refuse(ancestor, small_vit(), wi.BundleError, words)


@pytest.mark.parametrize("config", [None, '{"architecture": "vit_tiny_patch16_224"}'])
def test_a_folder_of_pickles(config, tmp_path):
    torch.save(small_vit().state_dict(), tmp_path / "pytorch_model.bin")
    if config:
        (tmp_path / "config.json").write_text(config)
    refuse(
        tmp_path, small_vit(), wi.BundleError,
        r"no model\.safetensors.*it holds pytorch_model\.bin.*never reads pickles.*pass the module",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "nope"}, r"method='nope' is unknown: use one of \['activation', 'auto'"),
        ({"method": wi.LEMON}, r"is no method: pass one of .* such as wi\.LEMON\(\)"),
        ({"method": None}, "method=None is no method: pass one of"),
        ({"method": "lemon"}, "lemon only grows.*use method='auto'"),
        ({"generator": 3}, r"generator=3: pass a torch\.Generator"),
        ({"keep": ["nope"]}, "keep='nope' names no parameter: use"),
    ],
)
def test_wrong_options(options, match):
    refuse(small_vit(24, 3, 3), small_vit(16, 2, 2), wi.ProjectionError, match, **options)


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([], "holds no batches: pass"),
        (torch.zeros(2, 3, 16, 16), "is a Tensor: pass an iterable"),
        ("images", "is a str: pass an iterable"),
        (7, "is a int: pass an iterable"),
        ([1, 2], "batch 0 is a int: pass tensors"),
        ([torch.zeros(8, 3, 15, 15)], r"does not run on calibration batch 0.*pass batches"),
        ([torch.zeros(8, 1, 16, 16)], r"does not run on calibration batch 0.*pass batches"),
        ([torch.zeros(8, 3, 16, 16).byte()], "does not run on calibration batch 0.*pass batches"),
        ([{"pixels": torch.zeros(8, 3, 16, 16)}], r"batch 0 has \['pixels'\].*name what it takes"),
        ([torch.full((16, 3, 16, 16), float("nan"))] * 4, "not finite: check the batches"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["activation", "subcloning", "auto"])
def test_wrong_calibration(batches, match, method):
    ancestor, model = small_vit(24, 3, 3), small_vit(16, 2, 2)
    refuse(ancestor, model, wi.ProjectionError, match, method=method, calibration=batches)


def test_calibration_needs_something_that_runs():
    ancestor, model = small_vit(24, 3, 3), small_vit(16, 2, 2)
    bare = wi.Ancestor.open(ancestor.state_dict(), heads=3)
    for method in ("activation", "subcloning", "auto"):
        refuse(
            bare, model, wi.ProjectionError, "cannot be run.*pass the module itself",
            method=method, calibration=images(),
        )  # fmt: skip
    for method in ("activation", "subcloning"):
        refuse(ancestor, model, wi.ProjectionError, "project_from.*calibration=", method=method)
    few = images(1, 1)
    refuse(ancestor, model, wi.ProjectionError, "5 tokens.*pass more batches", calibration=few)


@pytest.mark.parametrize(
    ("sizes", "batches", "picked"),
    [
        ({"width": 48, "heads": 6}, None, "LEMON("),
        (
            {"depth": 5},
            images(),
            "LEMON(mode='proj', depth='copymix_cancel'), which has no use for",
        ),
        (
            {"width": 16, "heads": 2},
            "none",
            "WeightSelection(elements='uniform', depth='first_l",
        ),
        ({"width": 16, "heads": 2}, None, "ActivationAware("),
        ({"width": 16, "heads": 2}, images(), "ActivationAware("),
        ({"depth": 2}, None, "WeightSelection("),
        ({"depth": 2}, images(), "ActivationAware("),
        ({}, images(), "WeightSelection("),
        ({"width": 16, "heads": 2, "depth": 5}, "none", "ShrinkThenGrow(shrink=WeightSelection("),
        ({"width": 16, "heads": 2, "depth": 5}, None, "ShrinkThenGrow(shrink=ActivationAware("),
        (
            {"width": 16, "heads": 2, "depth": 5},
            images(),
            "ShrinkThenGrow(shrink=ActivationAware(",
        ),
    ],
)
def test_the_report_says_what_auto_picked(sizes, batches, picked):
    ancestor = small_vit(24, 3, 3)
    model = small_vit(**{"width": 24, "heads": 3, "depth": 3, **sizes})
    plan = wi.plan_projection(ancestor, model, calibration=batches)
    told = [note for note in plan.report().notes if "auto" in note]
    assert len(told) == 1 and told[0].startswith(f"method 'auto' picked {picked}")
    assert picked.partition("(")[0] in str(plan.report())
    plan.commit()
    by_hand = small_vit(**{"width": 24, "heads": 3, "depth": 3, **sizes})
    wi.project_from(ancestor, by_hand, calibration=batches)
    assert digest(by_hand) == digest(model)


def test_blocks_that_cannot_be_fitted_are_ranked():
    """Post-norm blocks have no place for a rotation of the stream."""
    block = timm.models.vision_transformer.ResPostBlock
    ancestor, model = small_vit(24, 3, 3, block_fn=block), small_vit(16, 2, 2, block_fn=block)
    notes = wi.plan_projection(ancestor, model, calibration=images()).report().notes
    assert "method 'auto' picked Subcloning(depth='first_last', rescale=True)" in notes


def test_a_large_ratio_warns_and_is_in_the_report():
    ancestor, model = small_vit(24, 3, 10), small_vit(24, 3, 2)
    words = "depth differs by a factor of 5: an ancestor closer in size gives more"
    assert words in wi.plan_projection(ancestor, model).report().notes
    with pytest.warns(UserWarning, match=words) as caught:
        wi.project_from(ancestor, model)
    assert caught[0].filename == __file__
    wide, narrow = small_vit(40, 5, 1, mlp_ratio=1.0), small_vit(8, 1, 1, mlp_ratio=1.0)
    with pytest.warns(UserWarning, match="[dm] differs by a factor of 5"):
        wi.project_from(wide, narrow)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wi.project_from(small_vit(24, 3, 8), small_vit(24, 3, 2))


def test_a_warning_that_is_an_error_leaves_the_target_alone():
    model = small_vit(24, 3, 2)
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="factor of 5"):
            wi.project_from(small_vit(24, 3, 10), model)
    assert_untouched(model, before)


def test_another_function_warns():
    model = small_vit(act_layer=torch.nn.ReLU)
    with pytest.warns(UserWarning, match=r"activation differs \(gelu in the ancestor, relu"):
        wi.project_from(small_vit(), model)


def pith(kind="pith"):
    torch.manual_seed(0)
    return wi.PITH(
        GraphHyperNetwork(HyperConfig(kind, hid=16, layers=1, heads=2, rank=4, max_ck=8192))
    )


#: Of each method a target that it takes from an ancestor of 24 channels, 3 heads and 3 blocks.
TARGETS = {
    "activation": {"width": 16, "heads": 2, "depth": 2},
    "auto": {"width": 16, "heads": 2, "depth": 5},
    "bert2bert": {"width": 48, "heads": 6, "depth": 4},
    "bot": {"width": 16, "heads": 2, "depth": 2},
    "expansions": {"width": 24, "heads": 3, "depth": 4, "mlp_ratio": 6.0},
    "fine": {"width": 24, "heads": 3, "depth": 5},
    "hypercloning": {"width": 48, "heads": 6, "depth": 4},
    "lemon": {"width": 32, "heads": 4, "depth": 5},
    "ligo": {"width": 32, "heads": 4, "depth": 5},
    "net2net": {"width": 48, "heads": 6, "depth": 4},
    "pith": {"width": 16, "heads": 2, "depth": 2},
    "stacking": {"width": 24, "heads": 3, "depth": 6},
    "subcloning": {"width": 16, "heads": 2, "depth": 2},
    "weight_selection": {"width": 16, "heads": 2, "depth": 2},
}


def test_every_method_is_tested():
    assert TARGETS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_seed_is_the_same_weights(name):
    """The same bits from the same seed, the global generator and the ancestor left alone."""
    ancestor = small_vit(24, 3, 3)
    before = digest(ancestor)

    def filled(seed, salt):
        model = randomise(small_vit(**TARGETS[name], num_classes=7), salt)
        method = pith() if name == "pith" else name
        torch.manual_seed(salt)
        state = torch.get_rng_state()
        wi.project_from(
            ancestor, model, method=method, calibration=images(),
            generator=None if seed is None else torch.Generator().manual_seed(seed),
        )  # fmt: skip
        assert torch.equal(torch.get_rng_state(), state)
        return model

    first, again, other, plain = (filled(*x) for x in ((5, 1), (5, 2), (6, 3), (None, 4)))
    assert digest(first) == digest(again)
    assert digest(plain) == digest(filled(None, 5))
    # The head has other classes, so it is drawn; or predicted, without a draw.
    assert name == "pith" or not torch.equal(first.head.weight, other.head.weight)
    assert digest(ancestor) == before
    assert torch.isfinite(logits(first)).all()


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("stored", [False, True])
def test_the_target_never_shares_the_ancestors_memory(name, device, stored):
    ancestor = small_vit()
    with torch.device(device):
        model = timm.create_model(
            "vit_tiny_patch16_224", depth=2, num_classes=5, img_size=16, patch_size=8,
            embed_dim=24, num_heads=3,
        )  # fmt: skip
    parameters = dict(model.named_parameters())
    source = wi.Ancestor.open(ancestor if not stored else ancestor.state_dict(), heads=3)
    method = pith() if name == "pith" else name
    if stored and name in ("activation", "subcloning"):
        return
    before = digest(ancestor)
    wi.project_from(source, model, method=method, calibration=None if stored else images())
    assert all(p is parameters[n] for n, p in model.named_parameters())
    theirs = {p.untyped_storage().data_ptr() for p in ancestor.parameters()}
    assert not theirs & {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert digest(ancestor) == before


def test_rules_explain_target_and_ancestor():
    ancestor, model = small_vit(), small_vit(16, 2)
    for module, width in ((ancestor, 24), (model, 16)):
        module.blocks[0].adapter = torch.nn.Linear(width, 4, bias=False)
    refuse(ancestor, model, wi.AnatomyError, r"blocks\.0\.adapter\.weight.*rules=")
    rules = [wi.Rule(r"blocks\.(?P<block>\d+)\.adapter\.weight", "adapter.weight", "a d")]
    wi.project_from(ancestor, model, rules=iter(rules))
    chosen = torch.linspace(0, 23, 16).round().long()
    wanted = ancestor.blocks[0].adapter.weight[:, chosen] * (24 / 16) ** 0.5
    torch.testing.assert_close(model.blocks[0].adapter.weight, wanted)


def test_methods_by_name_or_object():
    assert get_method("lemon") == wi.LEMON()
    chosen = wi.WeightSelection(heads="flat")
    assert get_method(chosen) is chosen
    for name in set(METHODS) - {"pith"}:
        assert callable(get_method(name).plan)


def test_a_method_of_ones_own_learns_from_the_target_what_is_kept():
    class Own:
        kept = frozenset()

        def plan(self, source, target, *, seed=0, calibration=None):
            self.kept = target.kept
            return wi.WeightSelection().plan(source, target, seed=seed)

    method = Own()
    plan = wi.plan_projection(small_vit(), small_vit(16, 2), method=method, keep=["head", "pos"])
    assert method.kept == {"head.weight", "head.bias", "pos_embed"}
    assert plan.report().counts["kept"] == 3
