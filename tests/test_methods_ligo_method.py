import json
import math

import pytest
import timm
import torch
from helpers.inherit import Stub, fill, logits, small_vit
from safetensors.torch import load_file

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.ligo.method import LiGO
from weightinit.methods.ligo.operator import operator_shapes

WIDTHS = {"query": "attn.q", "key": "attn.k", "value": "attn.v", "ffn": "mlp:m"}


def bert(size):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=size["H"], num_hidden_layers=size["L"],
        num_attention_heads=size["heads"], intermediate_size=size["inter"],
        max_position_embeddings=20, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def gpt2(width, heads, depth):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=31, n_embd=width, n_layer=depth, n_head=heads, n_positions=8, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def renamed(tensors, seen):
    """The published code's operator by our names."""
    operator = {}
    for name, value in tensors.items():
        if not name.startswith("operator."):
            continue
        path = name.removeprefix("operator.").split(".")
        if path[-2] == "fuse_depth_coeffs":
            module, which = ".".join(path[:-2]), path[-1].removeprefix("coeffs_")
            spec = seen.spec(f"{module}.{which}")
            operator[f"depth.{spec.block}.{spec.role}"] = value
        elif path[-2] in ("fuse_width_emb", "fuse_width_cls"):
            operator["width.d" if path[-2].endswith("emb") else "width.head"] = value
        else:
            operator[f"width.{path[3]}.{WIDTHS[path[-2].removeprefix('fuse_width_')]}"] = value
    return operator


@pytest.mark.parametrize("case", ["ligo_a"])
def test_it_is_the_published_code(golden, case):
    described = json.loads((golden / f"{case}.json").read_text())
    tensors = load_file(golden / f"{case}.safetensors")
    ancestor, model = bert(described["small"]), bert(described["large"])
    values = {k.removeprefix("source."): v for k, v in tensors.items() if k.startswith("source.")}
    operator = renamed(tensors, anatomy(model))
    # The published count holds the 61 entries of cls.predictions.bias, which it leaves alone.
    assert sum(v.numel() for v in operator.values()) == described["n_operator_params"] - 61
    fill(model, Stub(ancestor, values), LiGO(operator=operator))
    wanted = {k.removeprefix("target."): v for k, v in tensors.items() if k.startswith("target.")}
    assert set(dict(model.named_parameters())) - set(wanted) <= {"cls.predictions.bias"}
    for name, value in wanted.items():
        given = model.get_parameter(name).detach()
        torch.testing.assert_close(given, value, atol=1e-6, rtol=0, msg=lambda m, n=name: n + m)


def test_every_weight_is_b_sum_w_a_transposed():
    """Against Eq. 8 written out: depth first, then [I; C] on either side."""
    ancestor, model = small_vit(24, 3, 2).double(), small_vit(40, 5, 3).double()
    chosen = LiGO("rand").start(anatomy(ancestor), anatomy(model))
    fill(model, ancestor, chosen)
    of = {name: value.double() for name, value in chosen.operator.items()}
    assert set(of) == {
        "width.d",
        *(f"width.{b}.{n}" for b in range(3) for n in ("attn.q", "attn.k", "attn.v", "mlp:m")),
        *(f"depth.{b}.{role}" for b in range(3) for role in anatomy(model).blocks[0]),
    }

    def whole(name):
        return torch.cat([torch.eye(of[name].shape[1], dtype=torch.float64), of[name]])

    d = whole("width.d")
    for index, block in enumerate(model.blocks):
        q, k, v, m = (whole(f"width.{index}.{n}") for n in WIDTHS.values())

        def mix(role, read, index=index):
            weights = of[f"depth.{index}.{role}"]
            return sum(w * read(b) for w, b in zip(weights, ancestor.blocks, strict=True))

        for part, (letter, out) in enumerate(zip("qkv", (q, k, v), strict=True)):
            for which, expected in (
                ("weight", lambda x, out=out: out @ x @ d.T),
                ("bias", lambda x, out=out: out @ x),
            ):
                old = mix(
                    f"attn.{letter}.{which}",
                    lambda b, w=which, i=part: getattr(b.attn.qkv, w).unflatten(0, (3, -1))[i],
                )
                new = getattr(block.attn.qkv, which).unflatten(0, (3, -1))[part]
                torch.testing.assert_close(new, expected(old))
        for role, (rows, columns) in {
            "attn.proj.weight": (d, v), "mlp.fc1.weight": (m, d), "mlp.fc2.weight": (d, m),
        }.items():  # fmt: skip
            old = mix(role, lambda b, r=role: b.get_parameter(r))
            torch.testing.assert_close(block.get_parameter(role), rows @ old @ columns.T)
        for role, rows in {"norm1.weight": d, "norm2.bias": d, "mlp.fc1.bias": m}.items():
            old = mix(role, lambda b, r=role: b.get_parameter(r))
            torch.testing.assert_close(block.get_parameter(role), rows @ old)
    torch.testing.assert_close(model.head.weight, ancestor.head.weight @ d.T)
    torch.testing.assert_close(model.norm.weight, d @ ancestor.norm.weight)
    torch.testing.assert_close(model.pos_embed, ancestor.pos_embed @ d.T)


def test_transposed_matrices_grow_alike():
    """GPT-2 stores in x out, and its head is the embedding."""
    ancestor, model = gpt2(16, 2, 2), gpt2(24, 3, 3)
    chosen = LiGO("stackbert", "sel").start(anatomy(ancestor), anatomy(model))
    report = fill(model, ancestor, chosen)
    assert report.counts["fresh"] == 0
    added, more = chosen.operator["width.d"], chosen.operator["width.2.mlp:m"]
    old, new = ancestor.transformer.h[0].mlp.c_fc.weight, model.transformer.h[2].mlp.c_fc.weight
    wide = torch.cat([old, added @ old])
    torch.testing.assert_close(new, torch.cat([wide, wide @ more.T], 1))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_copies_of_channels_with_exact_shares_are_inside_its_reach():
    """A one-hot C on every producer and half weights on the readers would be Net2Net: the tied
    operator shares C between both, so twice the width doubles every sum that a matrix reads."""
    ancestor, model = small_vit(24, 3, 1), small_vit(48, 6, 1)
    chosen = LiGO("stackbert", "sel").start(anatomy(ancestor), anatomy(model))
    eye = {k: torch.eye(v.shape[1]) if k.startswith("width") else v
           for k, v in chosen.operator.items()}  # fmt: skip
    fill(model, ancestor, LiGO(operator=eye))
    assert torch.equal(model.norm.weight, ancestor.norm.weight.repeat(2))
    assert torch.equal(model.head.weight, ancestor.head.weight.repeat(1, 2))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 36, "heads": 3},
        {"width": 24, "heads": 6, "mlp_ratio": 6.0},
        {"width": 48, "heads": 6, "init_values": 0.1, "qk_norm": True, "class_token": False,
         "global_pool": "map"},
    ],
)  # fmt: skip
def test_it_reaches_every_parameter(sizes, tied):
    options = {k: v for k, v in sizes.items() if k not in ("width", "heads", "mlp_ratio")}
    ancestor, model = small_vit(24, 3, 2, **options), small_vit(depth=4, **sizes)
    chosen = LiGO(tied=tied)
    report = fill(model, ancestor, chosen, seed=3)
    assert report.counts["fresh"] == 0
    operator = chosen.start(anatomy(ancestor), anatomy(model), seed=3).operator
    assert not [k for k in operator if k.startswith("width.") and k.endswith(":h")]
    read = set()

    class Spy(dict):
        def __getitem__(self, name):
            read.add(name)
            return super().__getitem__(name)

    fill(model, ancestor, LiGO(tied=tied, operator=Spy(operator)), seed=3)
    assert read == set(operator)


def test_a_new_head_is_fresh_and_images_are_resampled():
    model = small_vit(36, 3, 2, num_classes=7, img_size=32)
    rows = fill(model, small_vit(24, 3, 2), LiGO()).rows
    told = {row.name: row.source for row in rows}
    assert told["blocks.1.attn.proj.bias"].startswith("attn.proj.bias of all blocks, mixed")
    assert [row.name for row in rows if row.action == "fresh"] == ["head.weight", "head.bias"]


def test_stages_grow_each_for_itself():
    def build(width, blocks):
        return timm.create_model(
            "convnext_atto", depths=blocks, dims=[width, width, 2 * width, 2 * width],
            num_classes=3,
        )  # fmt: skip

    ancestor, model = build(4, (1, 1, 2, 1)), build(6, (1, 2, 3, 1))
    assert fill(model, ancestor, LiGO()).counts["fresh"] == 0
    shapes = operator_shapes(anatomy(ancestor), anatomy(model))
    assert [shapes[f"depth.{b}.mlp.fc1.weight"] for b in range(7)] == [
        (1,), (1,), (1,), (2,), (2,), (2,), (1,),
    ]  # fmt: skip
    assert shapes["width.d0"] == (2, 4) and shapes["width.d3"] == (4, 8)


def test_the_seed_is_the_operators():
    ancestor, model = small_vit(24, 3, 2), small_vit(36, 3, 3)
    draws = []
    for seed in (0, 0, 1):
        fill(model, ancestor, LiGO(), seed=seed)
        draws.append(logits(model))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"width": 16, "heads": 2}, "d 24 -> 16, h k 24 -> 16, m 96 -> 64"),
        ({"width": 36, "mlp_ratio": 1.0}, "m 96 -> 36"),
        ({"depth": 1}, r"stages of \[2\] blocks cannot become \[1\]"),
    ],
)
@pytest.mark.parametrize("held", [None, {}])
def test_shrinking_is_refused_by_name(sizes, said, held):
    with pytest.raises(ProjectionError, match=said):
        fill(small_vit(**{"width": 24, "depth": 2, **sizes}), small_vit(24, 3, 2),
             LiGO(operator=held))  # fmt: skip


def test_values_and_operators_are_checked():
    with pytest.raises(ProjectionError, match=r"depth_init='stack'.*'stackbert'"):
        LiGO("stack")
    with pytest.raises(ProjectionError, match="width_init='all'"):
        LiGO(width_init="all")
    old, new, other = small_vit(24, 3, 2), small_vit(36, 3, 2), small_vit(36, 3, 3)
    operator = LiGO().start(anatomy(old), anatomy(new))
    with pytest.raises(ProjectionError, match=r"depth.2.*another pair|another pair.*depth.2"):
        fill(other, old, operator)


def test_by_name():
    ancestor, model = small_vit(24, 3, 2), small_vit(36, 3, 3)
    wi.project_from(ancestor, model, method="ligo", generator=torch.Generator().manual_seed(1))
    assert math.isfinite(logits(model).sum())
