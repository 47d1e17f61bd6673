"""Learned operators as bundles: LiGO's and FINE's, in folders and on the Hub."""

import json

import pytest
import torch
from helpers.bundles import files_of
from helpers.inherit import fill, logits, small_vit

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import BundleError, ProjectionError


def ligo(**options):
    """An operator between two sizes, as drawn; untied ones have names that no file may have."""
    old, new = anatomy(small_vit(24, 3, 2)), anatomy(small_vit(36, 3, 3))
    return wi.LiGO(**options).start(old, new)


def fine(rank=None):
    """Factors of an ancestor for one more block."""
    old, new = small_vit(depth=2), small_vit(depth=3)
    return wi.FINE(rank).start(wi.Ancestor.open(old), anatomy(new))


def assert_same(one, other):
    """What frozen options compare, and all of their tensors."""
    assert other == one
    for (mine, own, depth), (theirs, same, deep) in [(one.contents(), other.contents())]:
        assert (mine, depth) == (theirs, deep) and own.keys() == same.keys()
        assert all(torch.equal(own[name], same[name]) for name in own)


@pytest.mark.parametrize(
    "operator",
    [
        ligo(),
        ligo(depth_init="interlace", width_init="sel_noisy", tied=False, noise=0.1),
        fine(),
        fine(rank=3),
    ],
    ids=["tied", "untied", "all", "rank 3"],
)
def test_round_trip(operator, tmp_path):
    operator.save_pretrained(tmp_path / "made")
    assert_same(operator, type(operator).from_pretrained(tmp_path / "made"))
    assert {p.name for p in (tmp_path / "made").iterdir()} == {
        "config.json", "model.safetensors", "README.md",
    }  # fmt: skip


def test_what_is_loaded_fills_a_model_alike(tmp_path):
    for operator, ancestor, model in (
        (ligo(), small_vit(24, 3, 2), small_vit(36, 3, 3)),
        (fine(rank=5), small_vit(depth=2), small_vit(depth=3)),
    ):
        operator.save_pretrained(tmp_path / type(operator).__name__)
        again = type(operator).from_pretrained(tmp_path / type(operator).__name__)
        fill(model, ancestor, operator)
        expected = logits(model)
        fill(model, ancestor, again)
        assert torch.equal(logits(model), expected)


def test_a_bundle_says_where_it_is_from(tmp_path):
    bundle = ligo().to_bundle(
        licence="MIT", provenance={"ancestor": "org/small"}, dtype=torch.bfloat16
    )
    bundle.save_pretrained(tmp_path)
    again = wi.LiGO.bundle.from_pretrained(tmp_path)
    assert again.config.licence == "MIT" and again.config.depth == 3
    assert again.config.provenance == {"ancestor": "org/small"}
    assert again.tensors["width.d"].dtype == torch.bfloat16
    assert wi.LiGO.from_pretrained(tmp_path).operator["width.d"].dtype == torch.float32
    assert "wi.LiGO.from_pretrained(" in again.card and "base_model: org/small" in again.card


@pytest.mark.parametrize(("options", "words"), [(wi.LiGO(), "fit_ligo"), (wi.FINE(), "fit_fine")])
def test_what_holds_nothing_is_not_saved(options, words, tmp_path):
    with pytest.raises(ProjectionError, match=words):
        options.save_pretrained(tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_hub_serves_and_takes_them(hub, tmp_path):
    for operator in (ligo(tied=False), fine()):
        name = f"org/{operator.bundle.kind}"
        hub.add(name, files_of(operator, tmp_path / operator.bundle.kind))
        assert_same(operator, type(operator).from_pretrained(f"{name}@main"))
        where = operator.push_to_hub(f"{name}-new", token="hf_good")
        assert_same(operator, type(operator).from_pretrained(where))


def test_kinds_are_not_mixed(tmp_path):
    fine().save_pretrained(tmp_path)
    with pytest.raises(BundleError, match="kind 'fine', LiGOBundle reads 'ligo'"):
        wi.LiGO.from_pretrained(tmp_path)
    with pytest.raises(BundleError, match="kind 'fine', TemplateBundle reads"):
        wi.TemplateBundle.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("make", "way", "value", "words"),
    [
        (ligo, ("own", "depth_init"), "getattr", r"no LiGO operator \(depth_init='getattr'"),
        (ligo, ("own", "noise"), "much", "no LiGO operator"),
        (ligo, ("own",), [], "no LiGO operator"),
        (ligo, ("own",), {}, "no LiGO operator"),
        (ligo, ("code",), "os.system", "options of the bundle are not those of a LiGO operator"),
        (ligo, ("shapes",), 3, "options of the bundle are not those of a LiGO operator"),
        (ligo, ("shapes", "width.d"), [12, 25], "width.d has shape .* calls for"),
        (ligo, ("shapes", "width.d"), "12", "positive whole number"),
        (ligo, ("shapes", "width.d"), [2**40, -1], "positive whole number"),
        (ligo, ("shapes", "width.z"), [1, 1], r"lacks tensors \[width.z\]"),
        (ligo, ("shapes", "a" * 500), [1], "is not allowed"),
        (ligo, ("shapes", "width\x1b[2J"), [1], "is not allowed"),
        (ligo, ("own", "depth_init"), "x" * 9_000, "no LiGO operator"),
        (fine, ("own", "rank"), 0, "no FINE operator"),
        (fine, ("own", "rank"), "all", "no FINE operator"),
        (fine, ("own", "errors"), None, "no FINE operator"),
        (fine, ("own", "errors", "mlp.fc9.weight"), 0.1, "no FINE operator"),
        (fine, ("shapes", "mlp.fc1.weight.left"), [1], "calls for"),
    ],
)
def test_strangers_configs_are_refused(make, way, value, words, tmp_path):
    make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    at = config["options"]
    for key in way[:-1]:
        at = at[key]
    at[way[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    method = wi.LiGO if make is ligo else wi.FINE
    with pytest.raises(BundleError, match=words) as raised:
        method.from_pretrained(tmp_path)
    assert len(str(raised.value)) < 2_000 and str(raised.value).isprintable()


def test_factors_of_two_ranks_are_refused(tmp_path):
    bundle = fine(rank=3).to_bundle()
    key = "mlp.fc1.weight.left"
    shapes = {**bundle.config.options["shapes"], key: [len(bundle.tensors[key]), 2]}
    config = json.loads(bundle.config.to_json())
    config.pop("schema")
    config["options"]["shapes"] = shapes
    tensors = {**bundle.tensors, key: bundle.tensors[key][:, :2]}
    wi.FINE.bundle(type(bundle.config)(**config), tensors).save_pretrained(tmp_path)
    with pytest.raises(BundleError, match=r"the ranks of mlp\.fc1\.weight differ"):
        wi.FINE.from_pretrained(tmp_path)
