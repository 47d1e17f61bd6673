"""The encoder, against the published code's intermediate results and a plain form of it."""

import pytest
import torch
from helpers.hypernet_reference import (
    KINDS,
    Golden,
    config,
    hypernet,
    published,
    task_of,
    torchvision_vit,
)

import weightinit as wi
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.encoder import ShapeEncoder
from weightinit.hypernet.graph import Graph, Node, graph_of
from weightinit.hypernet.network import GraphHyperNetwork


@pytest.mark.parametrize("kind", KINDS)
def test_intermediate_results_are_published(golden, kind):
    case, found = Golden(golden, kind), {}
    graph, net = graph_of(wi.anatomy(case.target)), case.net
    for name, module in (("embed", net.embed), ("layer0", net.gnn[0]), ("layer1", net.gnn[1])):
        module.register_forward_hook(lambda _, args, out, name=name: found.update({name: out}))
    with torch.no_grad():
        last = net.encode(graph, case.task)
        shaped = found["embed"] + net.shape_enc(graph)
        bias = net.gnn[0].attn.bias(graph.distances)
    wanted = case.part("mid")
    for value, expected in (
        (found["embed"], wanted["embed_out"]),
        (shaped, wanted["shape_enc_out"]),
        (bias, wanted["attn_bias"][0].permute(2, 0, 1)),
        (found["layer0"], wanted["gnn_layer0_out"]),
        (found["layer1"], wanted["gnn_out"]),
        (last, wanted["ln_out"]),
    ):
        torch.testing.assert_close(value, expected.view_as(value), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layernorm", [True, False])
def test_it_is_the_plain_form(kind, layernorm):
    model = torchvision_vit(2, 48, size=32, patch=8, classes=7)
    net = hypernet(kind, layernorm=layernorm)
    plain = published.embeddings(net, published.trace(model, 32), task_of(net))
    own = net.encode(graph_of(wi.anatomy(model)), task_of(net))
    torch.testing.assert_close(own, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [3, 5, 10, 100, 1000])
def test_shapes_fall_into_published_bins(classes):
    """4 to 7 channels count as 8 and kernels of 2 as 3, unless the classes made a bin of them."""
    encoder = ShapeEncoder(config(num_classes=classes))
    for table in (encoder.embed_channel, encoder.embed_spatial):
        table.weight.data = torch.arange(float(table.num_embeddings))[:, None].expand(-1, 4)
    sizes = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 36, 100, 192, 1000, 4090, 4100, 8192, 20000]
    nodes = [Node("conv", ("head.weight",), -1, (n, n, n, n)) for n in sizes] + [Node("sum")]
    found = encoder(Graph(tuple(nodes), ())).view(len(nodes), 4, 4)[..., 0].long()
    for row, size in zip(found.tolist(), [*sizes, -1], strict=True):
        channels, spatial = encoder.channels.tolist(), encoder.spatial.tolist()
        assert row[0] == row[1] == published._bin(size, channels)
        assert row[2] == row[3] == published._bin(size, spatial)


@pytest.mark.parametrize(("classes", "rows"), [(10, 391), (1000, 391), (64, 390)])
def test_tables_have_published_sizes(classes, rows):
    with torch.device("meta"):
        encoder = ShapeEncoder(HyperConfig(num_classes=classes))
    assert encoder.embed_channel.num_embeddings == rows + 1
    assert encoder.embed_spatial.num_embeddings == 11
    small = ShapeEncoder(HyperConfig("ghn3", max_shape=(64, 64, 11)))
    assert small.embed_spatial.num_embeddings == 9


def test_a_task_changes_nothing_at_first():
    """FiLM begins as the identity (TAL's heads are zero)."""
    graph = graph_of(wi.anatomy(torchvision_vit(1, 32)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = GraphHyperNetwork(config("tal"))
    plain = net.encode(graph)
    assert torch.equal(net.encode(graph, 5 * torch.ones(12)), plain)
    torch.nn.init.normal_(net.gnn[0].TEN.fc_beta.weight)
    assert not torch.equal(net.encode(graph, torch.ones(12)), plain)


def test_published_initialisation():
    net = hypernet("ghn3", hid=64, heads=8)
    assert net.embed.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)
    assert net.decoder.conv[2].weight.abs().max().item() <= 512**-0.5 / 5
    assert net.decoder_1d.fc[2].weight.abs().max().item() <= 128**-0.5 / 5
