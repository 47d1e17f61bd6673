import pytest
import timm
import torch
from helpers.inherit import bert, fill, logits, randomise, says, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weightinit as wi
from weightinit.anatomy import Labels, anatomy
from weightinit.errors import ProjectionError
from weightinit.init.operators import Copies
from weightinit.methods.bert2bert import Bert2BERT, copies_of


def maps_of(old, new, copies="even", seed=0):
    """The map of every axis by its labels: which old channel each new one copies."""
    copying = Bert2BERT(copies=copies)._copying(anatomy(old), anatomy(new), seed)
    return lambda label: None if copying.of(label) is None else copying.of(label).index


def gpt2(width):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=31, n_embd=width, n_layer=2, n_head=width // 8, n_positions=8, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return randomise(transformers.GPT2LMHeadModel(config)).double()


def timm_model(name, **sizes):
    return randomise(timm.create_model(name, num_classes=5, **sizes)).double()


def convnext(width):
    return timm_model("convnext_atto", depths=(1, 1, 2, 1), dims=[width, width, width, 2 * width])


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 48, "heads": 6},
        {"width": 72, "heads": 9, "mlp_ratio": 5.5},
        {"width": 48, "heads": 6, "init_values": 0.1, "qk_norm": True, "scale_mlp_norm": True,
         "mlp_layer": timm.layers.SwiGLU},
        {"width": 48, "heads": 6, "class_token": False, "global_pool": "map"},
    ],
)  # fmt: skip
def test_fpi_is_the_same_function_where_copies_are_even(sizes):
    options = {k: v for k, v in sizes.items() if k not in ("width", "heads", "mlp_ratio")}
    ancestor = small_vit(24, 3, 2, **options).double()
    model = small_vit(depth=2, **sizes).double()
    assert fill(model, ancestor, Bert2BERT()).counts["fresh"] == 0
    torch.testing.assert_close(logits(model), logits(ancestor), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (lambda: bert(16, False), lambda: bert(32, False)),
        (lambda: bert(16, True), lambda: bert(32, True)),
        (lambda: gpt2(16), lambda: gpt2(48)),
        (lambda: convnext(4), lambda: convnext(8)),
        *(
            tuple(
                lambda name=name, width=width: timm_model(
                    name, img_size=32, embed_dim=width, num_heads=width // 8, depth=2
                )
                for width in (16, 32)
            )
            for name in (
                "eva02_tiny_patch14_224", "beit_base_patch16_224", "cait_xxs24_224",
                "deit_tiny_distilled_patch16_224",
            )
        ),
    ],
    ids=["bert", "bert tied", "gpt2", "convnext", "eva02", "beit", "cait", "distilled"],
)  # fmt: skip
def test_every_family_keeps_its_function(old, new):
    ancestor, model = old(), new()
    assert fill(model, ancestor, Bert2BERT()).counts["fresh"] == 0
    torch.testing.assert_close(says(model), says(ancestor), atol=1e-10, rtol=0)


@pytest.mark.parametrize("copies", ["even", "random"])
def test_heads_and_hidden_channels_need_no_even_copies(copies):
    """Only norms count copies: what a matrix reads is shared whatever their number."""
    ancestor, model = small_vit(24, 3, 2).double(), small_vit(24, 3, 2, mlp_ratio=6.3).double()
    fill(model, ancestor, Bert2BERT(copies=copies), seed=3)
    torch.testing.assert_close(logits(model), logits(ancestor), atol=1e-10, rtol=0)


@pytest.mark.parametrize("copies", ["even", "random"])
def test_each_weight_is_the_papers_sum(copies):
    """U[i, j] = W[g(i), g(j)] / C(g(j)), element by element."""
    ancestor, model = small_vit(16, 2, 1).double(), small_vit(40, 5, 1).double()
    fill(model, ancestor, Bert2BERT(copies=copies), seed=1)
    maps = maps_of(ancestor, model, copies, seed=1)
    d, hk, m = (maps(Labels(names)).tolist() for names in ("d", "hk", "m"))
    old, new = ancestor.blocks[0], model.blocks[0]
    qkv = [block.attn.qkv.weight.unflatten(0, (3, -1)) for block in (old, new)]
    cases = [(qkv[0][i], qkv[1][i], hk, d) for i in range(3)] + [
        (old.attn.proj.weight, new.attn.proj.weight, d, hk),
        (old.mlp.fc1.weight, new.mlp.fc1.weight, m, d),
        (old.mlp.fc2.weight, new.mlp.fc2.weight, d, m),
        (ancestor.head.weight, model.head.weight, list(range(5)), d),
    ]
    for before, after, rows, columns in cases:
        wanted = torch.stack([
            torch.stack([before[r, c] / columns.count(c) for c in columns]) for r in rows
        ])  # fmt: skip
        torch.testing.assert_close(after, wanted)
    assert torch.equal(new.norm1.weight, old.norm1.weight[d])
    assert torch.equal(new.mlp.fc1.bias, old.mlp.fc1.bias[m])
    assert torch.equal(model.pos_embed, ancestor.pos_embed[..., d])


@given(st.integers(1, 50), st.integers(0, 120), st.sampled_from(["even", "random"]))
@settings(max_examples=60, deadline=None)
def test_maps_keep_the_old_channels_and_even_ones_are_even(old, more, copies):
    index = copies_of(old, old + more, copies, torch.Generator().manual_seed(0))
    assert index[:old].tolist() == list(range(old)) and len(index) == old + more
    counts = index.bincount(minlength=old)
    assert len(counts) == old
    assert copies == "random" or counts.max() - counts.min() <= 1
    first = Copies(index).turns == 0
    assert first[:old].all() and not first[old:].any()


def test_heads_are_copied_whole():
    index = maps_of(small_vit(24, 3, 1), small_vit(40, 5, 1))(Labels("hk")).view(5, 8)
    assert torch.equal(index % 8, torch.arange(8).expand(5, 8))
    assert all(len(set((row // 8).tolist())) == 1 for row in index)


def test_a_head_joins_the_copy_of_its_keys_and_values():
    """Grouped queries: head i reads key-value head i // (h / e), in the copy as in the ancestor."""

    def grouped(heads, groups):
        width = 8 * heads
        model = timm.create_model(
            "eva02_base_patch14_224", img_size=28, embed_dim=width, num_heads=heads, depth=1
        )
        attn = model.blocks[0].attn
        attn.k_proj = nn.Linear(width, 8 * groups, bias=False)
        attn.v_proj = nn.Linear(width, 8 * groups)
        return model

    for groups in (2, 4):
        maps = maps_of(grouped(4, 2), grouped(12, groups))
        heads = maps(Labels("hk"))[::8] // 8
        theirs = maps(Labels("ek"))
        kept = torch.arange(2) if theirs is None else theirs[::8] // 8
        assert heads.unique().tolist() == [0, 1, 2, 3]
        assert torch.equal(heads // 2, kept[torch.arange(12) // (12 // groups)])
    with pytest.raises(ProjectionError, match=r"serves 4 heads .* only 2"):
        maps_of(grouped(8, 2), grouped(12, 6))(Labels("hk"))
    with pytest.raises(ProjectionError, match="one of the two models has grouped"):
        maps_of(grouped(4, 2), grouped(6, 6))


@pytest.mark.parametrize("depth", ["stack_top", "interlace"])
def test_aki_takes_added_rows_from_the_next_block(depth):
    ancestor, model = small_vit(16, 2, 3), small_vit(24, 3, 4)
    fill(model, ancestor, Bert2BERT("aki", depth))
    maps = maps_of(ancestor, model)
    d, hk, m = (maps(Labels(names)) for names in ("d", "hk", "m"))
    own = {"stack_top": [0, 1, 2, 2], "interlace": [0, 0, 1, 2]}[depth]
    for block, index in zip(model.blocks, own, strict=True):
        pair = ancestor.blocks[index], ancestor.blocks[min(index + 1, 2)]
        for name, rows, columns, length in (
            ("attn.proj.weight", d, hk, 16),
            ("mlp.fc1.weight", m, d, 64),
            ("mlp.fc2.weight", d, m, 16),
        ):
            low, high = (
                x.get_parameter(name)[rows][:, columns] / columns.bincount()[columns] for x in pair
            )
            torch.testing.assert_close(
                block.get_parameter(name), torch.cat([low[:length], high[length:]])
            )
        low, high = (x.mlp.fc1.bias[m] for x in pair)
        assert torch.equal(block.mlp.fc1.bias, torch.cat([low[:64], high[64:]]))
        low, high = (x.attn.qkv.bias.unflatten(0, (3, -1))[1][hk] for x in pair)
        key = block.attn.qkv.bias.unflatten(0, (3, -1))[1]
        assert torch.equal(key, torch.cat([low[:16], high[16:]]))
        assert torch.equal(block.norm2.bias, pair[0].norm2.bias[d])


def test_aki_leaves_alone_what_does_not_grow():
    ancestor, model = small_vit(16, 2, 2), small_vit(16, 2, 2, mlp_ratio=5.0)
    fill(model, ancestor, Bert2BERT("aki"))
    for name in ("attn.qkv.weight", "attn.proj.bias", "mlp.fc2.bias", "norm1.weight"):
        old, new = (x.blocks[0].get_parameter(name) for x in (ancestor, model))
        assert torch.equal(old, new)
    assert len(model.blocks[0].mlp.fc1.weight.unique(dim=0)) == 80


def test_aki_stays_within_a_stage():
    ancestor, model = convnext(4), convnext(8)
    fill(model, ancestor, Bert2BERT("aki"))
    rows = model.stages[0].blocks[0].mlp.fc1.weight[16:]
    old = ancestor.stages[0].blocks[0].mlp.fc1.weight
    assert len(torch.cat([rows[:, :4] * 2, old]).unique(dim=0)) == 16


def test_depth_stacks_and_tops_up():
    ancestor, model = small_vit(24, 3, 3), small_vit(24, 3, 8)
    fill(model, ancestor, Bert2BERT())
    for block, index in zip(model.blocks, [0, 1, 2, 0, 1, 2, 1, 2], strict=True):
        assert torch.equal(block.mlp.fc1.weight, ancestor.blocks[index].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"width": 16, "heads": 2}, "d 24 -> 16, .*m 96 -> 64"),
        ({"width": 24, "depth": 1}, "depth 2 -> 1"),
        (
            {"width": 48, "heads": 3},
            "head dim .k. grows from 8 to 16: give the target .* head dim of 8",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(sizes, said):
    with pytest.raises(ProjectionError, match=said):
        fill(small_vit(**{"heads": 3, "depth": 2, **sizes}), small_vit(24, 3, 2), Bert2BERT())


def test_values_are_checked():
    with pytest.raises(ProjectionError, match="mode='api'"):
        Bert2BERT("api")
    with pytest.raises(ProjectionError, match="copies='odd'"):
        Bert2BERT(copies="odd")
    with pytest.raises(ProjectionError, match="mixes blocks"):
        fill(small_vit(depth=3), small_vit(depth=2), Bert2BERT("aki", "interpolate"))


def test_by_name_and_seed():
    ancestor = small_vit(24, 3, 2)
    models = [small_vit(40, 5, 2) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        wi.project_from(ancestor, model, method="bert2bert",
                        generator=torch.Generator().manual_seed(seed))  # fmt: skip
    a, b, c = map(logits, models)
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(
    ("sizes", "options", "said"),
    [
        ({"width": 48, "heads": 6}, {}, "bert2BERT is lossless here"),
        (
            {"width": 40, "heads": 5},
            {},
            "not lossless here: norm1.weight, norm2.weight",
        ),
        ({"depth": 3}, {}, "not lossless here: blocks are copied or left out"),
        ({"width": 48, "heads": 6}, {"mode": "aki"}, "mode='aki' takes the added rows"),
    ],
)
def test_it_says_whether_it_is_lossless(sizes, options, said):
    old, new = small_vit(24, 3, 2), small_vit(**{"width": 24, "heads": 3, "depth": 2, **sizes})
    (note,) = fill(new, old, Bert2BERT(**options)).notes
    assert said in note
