"""Converted checkpoints predict by default what they were trained to predict."""

import pytest
import timm
import torch
from helpers.hypernet_reference import config, hypernet, published, task_of, torchvision_vit
from helpers.models import vit

import weightinit as wi
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.hypernet.convert import convert
from weightinit.hypernet.files import HyperNetwork
from weightinit.hypernet.fusion import Fusion
from weightinit.hypernet.graph import graph_of
from weightinit.hypernet.network import GraphHyperNetwork

BEYOND = {"max_shape": (90, 90, 16)}


def converted(net, tmp_path, **options):
    """The bundle that ``convert`` makes of a checkpoint with the weights of ``net``."""
    own = net.config
    stated = {"max_shape": (*own.max_shape, own.max_shape[2]), "num_classes": own.num_classes}
    torch.save({"state_dict": net.state_dict(), "config": stated}, tmp_path / "old.pt")
    convert(tmp_path / "old.pt", tmp_path / "new", **options)
    return tmp_path / "new"


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def arguments(net, **changes):
    """Arguments of init_from_hypernet besides model and network."""
    old = torchvision_vit(4, 112, seed=1) if net.config.kind == "pith" else None
    found = {"task": task_of(net), "ancestor": old, **changes}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("kind", ["ghn3", "logah", "tal", "pith"])
def test_a_converted_checkpoint_predicts_by_the_released_codes_rules(kind, tmp_path):
    """Also where it is larger than max_shape: the biases begin at another entry there."""
    net = hypernet(kind, **({} if kind == "ghn3" else BEYOND))
    folder = converted(net, tmp_path)
    default, faithful, ours, plain = (torchvision_vit(2, 96) for _ in range(4))
    wi.init_from_hypernet(default, folder, **arguments(net))
    wi.init_from_hypernet(faithful, net, faithful=True, **arguments(net))
    assert same(default, faithful)
    if kind == "ghn3":
        return
    # by ours it is another prediction where something is clipped, and both can be asked for
    with pytest.raises(ProjectionError, match="beyond what the hypernetwork was made for"):
        wi.init_from_hypernet(ours, folder, faithful=False, **arguments(net))
    net = hypernet(kind)
    folder = converted(net, tmp_path)
    wi.init_from_hypernet(ours, folder, faithful=False, **arguments(net))
    wi.init_from_hypernet(plain, net, **arguments(net))
    assert same(ours, plain) == (kind != "pith")  # whose blocks are the first ones


def test_biases_beyond_max_shape_are_as_published():
    """All of a long bias moves if it is read from its own length on."""
    net = hypernet(max_shape=(256, 256, 16))
    released = GraphHyperNetwork(config(max_shape=(256, 256, 16), faithful=True))
    released.load_state_dict(net.state_dict())
    model = torchvision_vit(1, 96)
    with torch.no_grad():
        plain = published.predict(net, published.trace(model, 64), dict(model.named_parameters()))
    wi.init_from_hypernet(model, released)
    name = "encoder.layers.encoder_layer_0.self_attention.in_proj_bias"
    assert len(plain[name]) == 288
    torch.testing.assert_close(model.get_parameter(name).detach(), plain[name])
    other = wi.init_from_hypernet(torchvision_vit(1, 96), net)
    assert not torch.allclose(other.get_parameter(name)[:256], plain[name][:256], atol=1e-3)


def test_a_released_pith_inherits_from_the_first_blocks(tmp_path):
    net = hypernet("pith")
    found = HyperNetwork.from_pretrained(converted(net, tmp_path)).module()
    source, seen = Ancestor.open(vit(depth=5, embed_dim=32)), wi.anatomy(vit(depth=2))
    assert Fusion(found, graph_of(seen), seen, source).blocks == [0, 1]
    one, two = vit(depth=2), vit(depth=2)
    old = vit(depth=5, embed_dim=32)
    wi.project_from(old, one, method=wi.PITH(tmp_path / "new"))
    wi.project_from(old, two, method=wi.PITH(net, faithful=True))
    assert same(one, two)
    with pytest.raises(ProjectionError, match="use faithful=False"):
        wi.project_from(old, vit(depth=6), method=wi.PITH(tmp_path / "new"))
    model = vit(depth=6)
    assert wi.project_from(old, model, method=wi.PITH(tmp_path / "new", faithful=False)) is model


def test_the_report_says_by_whose_rules(tmp_path):
    net = hypernet()
    folder = converted(net, tmp_path)
    for where, asked, words in (
        (folder, None, "predicted by the released code's rules, by which"),
        (folder, True, "predicted by the released code's rules, by which"),
        (folder, False, "trained by the released code's rules, and predicts by weightinit's"),
        (net, True, "trained by weightinit's rules, and predicts by the released code's"),
        (net, None, None),
        (net, False, None),
    ):
        plan = wi.plan_hypernet(torchvision_vit(1, 32), where, faithful=asked)
        text = str(plan.report())
        assert (words in text) if words else "rules" not in text
    card = (folder / "README.md").read_text()
    assert "trained by the rules of the released code" in " ".join(card.split())


def test_what_ships_predicts_by_ours():
    for name in ("logah-cifar10", "pith-cifar10"):
        found = HyperNetwork.from_pretrained(name).hyper_config
        assert not found.faithful and found.alignment == "uniform" and found.language == "none"


@pytest.mark.parametrize("kind", ["logah", "pith"])
@pytest.mark.parametrize("make", ["torchvision", "timm"])
def test_on_meta_what_has_no_node_is_fresh(kind, make):
    """There is nothing to keep; elsewhere it stays as it was."""
    net = hypernet(kind)
    changes = {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 5}

    def build():
        if make == "torchvision":
            return torchvision_vit(2, 64)
        return timm.create_model("vit_tiny_patch16_224", **changes)

    old = build()
    options = {"faithful": True, **({"ancestor": old} if kind == "pith" else {})}
    with torch.device("meta"):
        meta = build()
    plan = wi.plan_hypernet(meta, net, **options)
    token = "class_token" if make == "torchvision" else "cls_token"
    assert plan.recipes[token].action == "fresh"
    plan.commit()
    real = build()
    kept = real.get_parameter(token).detach().clone()
    wi.init_from_hypernet(real, net, **options)
    assert torch.equal(real.get_parameter(token), kept)
    for name, value in real.named_parameters():
        assert name == token or torch.equal(value, meta.get_parameter(name)), name
    if kind == "pith":
        with torch.device("meta"):
            other = build()
        wi.project_from(old, other, method=wi.PITH(net, faithful=True))
        assert same(meta, other)


def gpt(**changes):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 50}
    own = {**sizes, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**own))


CLASSES = {"gpt": {"language": "gpt"}, "llm": {"language": "llm", "primitives": 18}}
LANGUAGE = {**CLASSES["llm"], "num_classes": 1000}


@pytest.mark.parametrize(("language", "more"), [("none", 0), ("gpt", 1), ("llm", 3)])
def test_the_table_of_shapes_of_language_models(language, more):
    """One or three vocabularies more than of images, as the released classes have."""
    with torch.device("meta"):
        net = GraphHyperNetwork(config(num_classes=1000, language=language))
    assert net.state_dict()["shape_enc.embed_channel.weight"].shape == (392 + more, 4)
    bins = net.shape_enc.channels.tolist()
    assert bins == sorted(bins) and len([n for n in bins if n > 8192]) == more


@pytest.mark.parametrize("key", [None, "ema"])
@pytest.mark.parametrize("language", CLASSES)
def test_a_checkpoint_of_a_language_class_converts(key, language, tmp_path):
    """From its shapes alone; what it was trained to predict follows from its decoder."""
    own = {**CLASSES[language], "num_classes": 1000}
    net = hypernet(**own)
    state = net.state_dict()
    torch.save(state if key is None else {"ema": state}, tmp_path / "old.pt")
    done = convert(tmp_path / "old.pt", tmp_path / "new", key=key)
    assert done.config.language == language and done.config.faithful
    assert done.config.primitives == own.get("primitives", 15)
    assert set(done.assumed) == {"num_classes", "max_shape", "softmax"}
    assert done.config.max_shape == (256, 256, 16) and net.config.max_ck == 16 * 256
    model = wi.init_from_hypernet(gpt(), tmp_path / "new")
    other = wi.init_from_hypernet(gpt(), hypernet(**own, faithful=True))
    assert same(model, other)
    assert model(torch.arange(5)[None]).logits.isfinite().all()


@pytest.mark.parametrize("std", [0.02, 0.05])
@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_has_the_deviation_of_its_own_initialiser(std, tied):
    """In every matrix, embeddings among them, by the later of LoGAH's classes."""
    nets = [hypernet(**LANGUAGE, faithful=True), hypernet(**LANGUAGE), hypernet(primitives=18)]
    options = [{}, {}, {"faithful": True}]
    for net, asked in zip(nets, options, strict=True):
        model = gpt(initializer_range=std, tie_word_embeddings=tied, n_inner=100)
        wi.init_from_hypernet(model, net, **asked)
        matrices = {n: p for n, p in model.named_parameters() if p.dim() > 1}
        assert len(matrices) == 2 + 4 * 2 + (not tied)
        for name, value in matrices.items():
            assert value.std().item() == pytest.approx(std, rel=1e-4), name
    # what this library trained keeps its scales
    ours = wi.init_from_hypernet(gpt(), hypernet(primitives=18)).transformer.wte.weight
    assert ours.std().item() != pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("most", [24, 256])
@pytest.mark.parametrize("language", CLASSES)
def test_matrices_of_a_language_model_are_made_as_they_are_stored(language, most):
    """Its linear layers are turned: rows are inputs, and what is clipped is tiled."""
    net = hypernet(**CLASSES[language], faithful=True, max_shape=(most, most, 16))
    model = gpt()
    wi.init_from_hypernet(model, net)
    seen = wi.anatomy(model)
    graph = graph_of(seen, stored=True)
    with torch.no_grad():
        x = net.encode(graph)
        for index, node in enumerate(graph.nodes):
            if not node.roles or node.op not in ("conv", "pos_enc"):
                continue
            pieces = seen.outside if node.block < 0 else seen.blocks[node.block]
            spec = pieces[node.roles[0]].spec
            assert node.shape[:2] == spec.shape
            key = tuple(min(size, most) for size in spec.shape)
            whole = published.tile(published.low_rank(net.decoder, x[[index]], key)[0], spec.shape)
            if language == "llm":
                wanted = whole / (whole.std() + 1e-7) * 0.02
            elif node.op == "pos_enc":
                wanted = whole
            else:
                ends = spec.name.endswith("c_proj.weight")
                wanted = whole * (2 / whole.shape[1]) ** 0.5 / (2 if ends else 1)
            found = model.get_parameter(spec.name)
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4, msg=spec.name)


def test_a_vision_transformer_is_never_scaled_as_a_language_model():
    net, model = hypernet(), torchvision_vit()
    graph = graph_of(wi.anatomy(model), stored=True)
    assert not graph.stored and not any(node.turned for node in graph.nodes)
    released = wi.init_from_hypernet(model, net, faithful=True)
    assert released.heads.head.weight.std().item() != pytest.approx(0.02, rel=0.01)
