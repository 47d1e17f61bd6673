"""Graphs from anatomies: those that the published code traces, for any ViT, without running it."""

from dataclasses import replace

import networkx
import pytest
import timm
import torch
from helpers.hypernet_reference import Golden, published, torchvision_vit
from helpers.timing import quickest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightinit as wi
from weightinit.errors import ProjectionError
from weightinit.hypernet.graph import PRIMITIVES, Graph, Node, graph_of, grid

KINDS = ("ghn3", "logah", "tal", "pith")


def anatomy_of(name="vit_tiny_patch16_224", **changes):
    with torch.device("meta"):
        return wi.anatomy(timm.create_model(name, **changes))


@pytest.mark.parametrize(
    ("depth", "softmax", "nodes", "pairs"),
    [
        (12, False, 152, 11_473),
        (12, True, 164, 13_363),
        (24, False, 296, None),
        (24, True, 320, None),
    ],
)
def test_published_sizes(depth, softmax, nodes, pairs):
    graph = graph_of(anatomy_of(depth=depth), softmax=softmax)
    assert len(graph.nodes) == nodes
    assert pairs is None or graph.distances.count_nonzero() == pairs
    longest = 2 * depth + 8 + softmax
    assert int(graph.distances.max()) == min(longest, 50)
    wide = replace(graph, cutoff=250)  # as the published generators have it
    assert int(wide.distances.max()) == longest


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_graph(golden, kind):
    case = Golden(golden, kind)
    graph = graph_of(wi.anatomy(case.target))
    assert torch.equal(graph.types, case.tensors["graph/node_types"].long())
    assert torch.equal(graph.distances, case.tensors["graph/adj_shortest_path"].long())


@pytest.mark.parametrize("depth", [1, 3])
def test_it_is_what_tracing_gives(depth):
    """Without a forward pass, the graph of the forward pass."""
    model = torchvision_vit(depth, 32, classes=5, size=32, patch=8)
    traced = published.trace(model, 32)
    seen = wi.anatomy(model)
    graph = graph_of(seen)
    assert [node.op for node in graph.nodes] == traced.ops
    assert torch.equal(graph.distances, traced.distances)
    for node, name, shape in zip(graph.nodes, traced.names, traced.shapes, strict=True):
        assert bool(node.roles) == bool(name)
        if name:
            padded = (*shape, 1, 1, 1)[:4]
            assert node.shape == padded
            assert node.roles[0] in seen.spec(name).parts


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_distances_are_shortest_paths(data):
    n = data.draw(st.integers(1, 14))
    pairs = [(i, j) for j in range(n) for i in range(j)]
    edges = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    cutoff = data.draw(st.integers(1, 6))
    graph = Graph((Node("conv"),) * n, tuple(edges), cutoff)
    slow = networkx.DiGraph(edges)
    slow.add_nodes_from(range(n))
    expected = torch.zeros(n, n, dtype=torch.long)
    for start, lengths in networkx.all_pairs_shortest_path_length(slow, cutoff=cutoff):
        for end, length in lengths.items():
            expected[start, end] = length
    assert torch.equal(graph.distances, expected)


@settings(max_examples=15, deadline=None)
@given(depth=st.integers(1, 6), softmax=st.booleans(), pooled=st.booleans(), bias=st.booleans())
def test_a_graph_is_sound(depth, softmax, pooled, bias):
    pool = {"global_pool": "avg", "class_token": False} if pooled else {}
    seen = anatomy_of(depth=depth, embed_dim=24, num_heads=3, qkv_bias=bias, **pool)
    graph = graph_of(seen, softmax=softmax)
    assert all(a < b for a, b in graph.edges) and len(set(graph.edges)) == len(graph.edges)
    ends = {b for _, b in graph.edges}
    starts = [i for i in range(len(graph.nodes)) if i not in ends]
    assert [graph.nodes[i].op for i in starts] == ["input", "pos_enc"]
    predicted = [(node.block, role) for node in graph.nodes for role in node.roles]
    assert len(set(predicted)) == len(predicted)
    assert {(i, role) for i, block in enumerate(seen.blocks) for role in block} <= set(predicted)
    assert sum(node.op == "msa" for node in graph.nodes) == softmax * depth
    assert sum(node.op == "glob_avg" for node in graph.nodes) == pooled


def test_shapes_are_the_targets():
    graph = graph_of(anatomy_of(embed_dim=96, num_heads=3, depth=1, num_classes=7))
    shapes = {node.roles[0]: node.shape for node in graph.nodes if node.roles}
    assert shapes["patch.weight"] == (96, 3, 16, 16)
    assert shapes["pos"] == (1, 96, 14, 14)
    assert shapes["attn.q.weight"] == (288, 96, 1, 1)
    assert shapes["mlp.fc1.bias"] == (384, 1, 1, 1)
    assert shapes["head.weight"] == (7, 96, 1, 1)
    assert {node.op for node in graph.nodes} <= set(PRIMITIVES)


def test_a_gated_mlp_is_one_node():
    graph = graph_of(anatomy_of("eva02_tiny_patch14_224", depth=2))
    gated = [node for node in graph.nodes if "mlp.up.weight" in node.roles]
    assert len(gated) == 2 and gated[0].roles[0] == "mlp.fc1.weight"


def test_post_norm_and_pooling_by_attention():
    post = graph_of(anatomy_of("vit_relpos_medium_patch16_rpn_224", depth=1))
    ops = [node.roles[0] for node in post.nodes if node.block == 0 and node.roles]
    assert ops.index("attn.proj.bias") < ops.index("norm1.weight")
    pooled = graph_of(anatomy_of("vit_base_patch16_siglip_224", depth=1))
    roles = [role for node in pooled.nodes for role in node.roles]
    assert {"pool.q.weight", "pool.k.bias", "pool.mlp.fc2.weight", "pool.norm.bias"} <= set(roles)


def test_two_heads_both_read_the_stream():
    graph = graph_of(anatomy_of("deit_tiny_distilled_patch16_224", depth=1))
    heads = [i for i, node in enumerate(graph.nodes) if node.roles[:1] and node.head]
    assert [graph.nodes[i].roles[0] for i in heads] == [
        "head.weight", "head.bias", "head_dist.weight", "head_dist.bias",
    ]  # fmt: skip
    before = {b: a for a, b in graph.edges}
    assert before[heads[0]] == before[heads[2]]


def test_tals_projection_has_a_node():
    graph = graph_of(anatomy_of(depth=1, embed_dim=96), extra={"M": (384, 96)})
    assert graph.nodes[-1].roles == ("M",) and graph.nodes[-1].shape == (384, 96, 1, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cait_xxs24_224", "token_blocks"),
        ("samvit_base_patch16", "neck"),
        ("vit_tiny_r_s16_p8_224", "patch_embed.backbone.conv.weight"),
        ("vit_small_patch16_18x2_224", "no attn.proj.weight"),
    ],
)
def test_layers_outside_the_vocabulary_are_named(name, words):
    with pytest.raises(ProjectionError, match=words) as caught:
        graph_of(anatomy_of(name))
    assert "use a plain ViT" in str(caught.value)


def test_grids_that_are_not_square():
    seen = anatomy_of(img_size=(32, 64), depth=1)
    assert grid(seen) == (2, 4)
    nodes = [node for node in graph_of(seen).nodes if node.roles == ("pos",)]
    assert nodes[0].shape == (1, 192, 2, 4)


def test_it_takes_milliseconds():
    """About 1 ms, where timm takes 75 to build the model on meta."""
    seen = anatomy_of()
    assert quickest(lambda: graph_of(seen).distances) < quickest(anatomy_of) / 5


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2(tied):
    transformers = pytest.importorskip("transformers")
    options = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "vocab_size": 40}
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**options, tie_word_embeddings=tied)
    )
    graph = graph_of(wi.anatomy(model))
    outside = [node.roles for node in graph.nodes if node.roles and node.block < 0]
    expected = [("embed.token.weight",), ("pos",), ("norm.weight", "norm.bias")]
    assert outside == expected + ([] if tied else [("head.weight",)])
    assert len(graph.nodes) == 4 + 12 * 2 + 1 + (not tied)
    embeddings = [node.shape for node in graph.nodes if node.op == "pos_enc"]
    assert embeddings == [(40, 16, 1, 1), (8, 16, 1, 1)]
