"""The doors by which an ancestor is opened: live objects, paths, names of timm and of the Hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers.ancestors import (
    ARCHITECTURE,
    CONFIG,
    NAME,
    REPO,
    assert_nothing_evil,
    assert_same,
    files_of,
    hf_model,
    published,
    shards,
    write,
)
from helpers.models import vit
from huggingface_hub import constants
from torch import nn

import weightinit as wi
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import AnatomyError, BundleError, ProjectionError

ROOT = Path(__file__).resolve().parents[1]

#: No door touches the global generator.
pytestmark = pytest.mark.usefixtures("global_generator")


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        lambda model: nn.DataParallel(torch.compile(model)),
        lambda model: nn.ModuleDict({"backbone": model}),
    ],
)
def test_wrappers(wrap, model):
    wrapped = wrap(model)
    ancestor = Ancestor.open(wrapped)
    assert_same(ancestor, wrapped)
    assert torch.equal(ancestor.stored("head.bias"), model.head.bias)
    copy = ancestor.module()
    if not isinstance(wrapped, nn.ModuleDict):
        x = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
        assert type(copy) is type(model) and torch.equal(copy(x), model(x))
    state = Ancestor.open(wrapped.state_dict(), heads=2)
    assert torch.equal(state.stored("head.bias"), model.head.bias)


@pytest.fixture
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_distributed_modules(process_group, model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    x = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
    ddp = Ancestor.open(nn.parallel.DistributedDataParallel(model))
    assert torch.equal(ddp.stored("head.bias"), model.head.bias)
    assert torch.equal(ddp.module()(x), model(x))
    plain = ddp.module()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    for source in (model, model.state_dict()):
        sharded = Ancestor.open(source, heads=2)
        assert type(sharded.stored("head.bias")) is torch.Tensor
        assert_same(sharded, plain, sizes=source is model)
    with pytest.raises(ProjectionError, match=r"cannot be copied.*before sharding"):
        Ancestor.open(model).module()


def test_meta_raises():
    with torch.device("meta"):
        model = vit()
    for source in (model, model.state_dict()):
        with pytest.raises(ProjectionError, match=r"on the meta device.*load its weights"):
            Ancestor.open(source, heads=2)


def test_a_state_dict_needs_its_heads(model, tmp_path):
    state = model.state_dict()
    with pytest.raises(
        ProjectionError, match=r"pass weightinit.Ancestor.open\(state_dict, heads=12"
    ):
        Ancestor.open(state)
    ancestor = Ancestor.open(state, heads=2)
    assert_same(ancestor, model, sizes=False)
    assert ancestor.anatomy.sizes["k"] == 8
    assert ancestor.source == f"a state dict of {len(state)} tensors"
    with pytest.raises(ProjectionError, match="cannot be run"):
        ancestor.module()
    file = write(tmp_path / "made", state) / "model.safetensors"
    with pytest.raises(ProjectionError, match=r"open\('.*model.safetensors', heads=12"):
        Ancestor.open(file)
    assert_same(Ancestor.open(file, heads=2), model, sizes=False)
    assert_same(Ancestor.open(tmp_path / "made", heads=2), model, sizes=False)
    with pytest.raises(ProjectionError, match="cannot be run"):
        Ancestor.open(file, heads=2).module()
    with torch.random.fork_rng(devices=[]):
        convnext = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 8, 12, 16))
    assert Ancestor.open(convnext.state_dict()).anatomy.family == "convnext"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.zeros(3, 3).to_sparse(), "sparse_coo"),
        (lambda: torch.zeros(3, 3).to_mkldnn(), "_mkldnn"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
        (nn.UninitializedParameter, "uninitialized"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_another_form_are_refused(make, words, model):
    state = {**model.state_dict(), "blocks.0.norm1.weight": make()}
    with pytest.raises(AnatomyError, match=rf"blocks\.0\.norm1\.weight \(.*{words}"):
        Ancestor.open(state, heads=2)
    # Beside the network they are left out as others are.
    beside = {**model.state_dict(), "queue": make()}
    assert Ancestor.open(beside, heads=2).anatomy.unexplained[0].name == "queue"


def test_wrong_heads(model):
    with pytest.raises(AnatomyError):
        Ancestor.open(model.state_dict(), heads=3)
    with pytest.raises(AnatomyError, match="the module says 2"):
        Ancestor.open(model, heads=4)
    for heads in (0, True, "2"):
        with pytest.raises(ProjectionError, match="heads="):
            Ancestor.open(model.state_dict(), heads=heads)
    with pytest.raises(ProjectionError, match="comes too late"):
        Ancestor.open(Ancestor.open(model), heads=4)
    with pytest.raises(AnatomyError, match="not those of"):
        Ancestor.open({"a": torch.ones(2)})


def test_a_grid_that_nothing_tells(tmp_path):
    """The positions of a state dict are of any grid; a module knows its own."""

    def audio(*grid):
        return vit(img_size=tuple(2 * side for side in grid), patch_size=2, in_chans=1)

    wide, target = audio(4, 9), audio(4, 18)
    state = wide.state_dict()
    with pytest.raises(ProjectionError, match=r"36 positions.*grid=\(rows, columns\).*4x18"):
        wi.plan_projection(Ancestor.open(state, heads=2), target)
    expected = audio(4, 18)
    wi.project_from(wide, expected)
    file = write(tmp_path, state) / "model.safetensors"
    for source in (state, file):
        wi.project_from(Ancestor.open(source, heads=2, grid=(4, 9)), target)
        assert torch.equal(target.pos_embed, expected.pos_embed)
    # A grid that is no square: refused where it matters, and the target's where it cannot.
    long = audio(2, 16).state_dict()
    with pytest.raises(ProjectionError, match="nothing tells of which grid"):
        wi.plan_projection(Ancestor.open(long, heads=2), target)
    same = audio(2, 16)
    wi.project_from(Ancestor.open(long, heads=2), same)
    assert torch.equal(same.pos_embed, long["pos_embed"])
    # A square is assumed, and the report says so.
    square = Ancestor.open(audio(4, 4).state_dict(), heads=2)
    rows = {row.role: row for row in wi.plan_projection(square, audio(6, 6)).report().rows}
    assert "taken for a square" in rows["pos"].source
    given = Ancestor.open(audio(4, 4).state_dict(), heads=2, grid=(2, 8))
    assert given.anatomy.traits.grid == (2, 8)
    for grid, words in (
        ((4, 10), "36 positions"),
        ((3, 9), "36 positions"),
        ((4,), "rows, columns"),
        ((0, 36), "grid="),
    ):
        with pytest.raises(ProjectionError, match=words):
            Ancestor.open(state, heads=2, grid=grid)
    with pytest.raises(ProjectionError, match=r"which has one of \(4, 9\)"):
        Ancestor.open(wide, grid=(6, 6))
    assert Ancestor.open(wide, grid=(4, 9)).anatomy.traits.grid == (4, 9)


def test_a_grid_with_a_row_too_many():
    """An extra token of the pretraining, taken out of the dict, leaves its position behind."""
    kinds = {"class_token": True, "global_pool": "token", "img_size": 8, "patch_size": 2}
    old, new = vit(**kinds), vit(**kinds)
    state = old.state_dict()
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], state["pos_embed"]], 1)
    wi.project_from(Ancestor.open(state, heads=2, grid=(4, 4)), new)
    assert torch.equal(new.pos_embed, old.pos_embed)


@pytest.mark.parametrize(("size", "grid"), [((4, 16), (2, 8)), ((4, 32), (2, 16)), (8, (4, 4))])
def test_the_config_of_transformers_has_the_grid(size, grid):
    model = hf_model("ViTModel", image_size=size)
    assert wi.anatomy(model).traits.grid == grid
    target = hf_model("ViTModel")
    wi.project_from(model, target)
    expected = timm.layers.resample_abs_pos_embed(
        model.embeddings.position_embeddings.detach(), [4, 4], list(grid)
    )
    torch.testing.assert_close(target.embeddings.position_embeddings.detach(), expected)


@pytest.mark.parametrize("form", ["module", "state dict", "file", "folder"])
def test_rules_of_ones_own(form, model, tmp_path):
    model.blocks[0].adapter = nn.Linear(model.embed_dim, 4, bias=False, device="meta")
    model.blocks[0].adapter.weight = nn.Parameter(torch.ones(4, model.embed_dim))
    rules = [wi.Rule(r"blocks\.(?P<block>\d+)\.adapter\.weight", "adapter.weight", "a d")]
    state = model.state_dict()
    folder = write(tmp_path, state)
    heads = None if form == "module" else model.blocks[0].attn.num_heads
    source = {
        "module": model, "state dict": state, "folder": folder,
        "file": folder / "model.safetensors",
    }[form]  # fmt: skip
    with pytest.raises(AnatomyError, match=r"blocks\.0\.adapter\.weight"):
        Ancestor.open(source, heads=heads)
    ancestor = Ancestor.open(source, heads=heads, rules=iter(rules))
    piece = ancestor.anatomy.blocks[0]["adapter.weight"]
    assert torch.equal(ancestor.part(piece), model.blocks[0].adapter.weight)


@pytest.mark.parametrize("make", [write, shards])
def test_a_folder(make, model, tmp_path, streamed):
    folder = make(tmp_path / "made", model.state_dict(), CONFIG)
    before = files_of(folder)
    ancestor = Ancestor.open(folder)
    assert_same(ancestor, model)
    assert ancestor.source == str(folder.resolve())
    copy = ancestor.module()
    x = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
    assert not copy.training and torch.equal(copy(x), model(x))
    with torch.no_grad():
        copy.head.weight.zero_()
        ancestor.stored("head.weight").zero_()  # forbidden, and yet without harm to the file
    assert files_of(folder) == before
    assert torch.equal(Ancestor.open(str(folder)).stored("head.weight"), model.head.weight)


def test_paths_and_names_of_one_spelling(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("org/name"), model.state_dict(), CONFIG)
    assert_same(Ancestor.open("org/name"), model)
    shutil.copytree("org/name", ARCHITECTURE)
    assert_same(Ancestor.open(f"./{ARCHITECTURE}"), model)
    assert_same(Ancestor.open(Path(ARCHITECTURE)), model)
    Path("org/name/model.safetensors").rename(f"{ARCHITECTURE}.safetensors")
    assert_same(Ancestor.open(f"{ARCHITECTURE}.safetensors", heads=2), model, sizes=False)
    with pytest.raises(ProjectionError, match="is a path and has no revision"):
        Ancestor.open(f"./{ARCHITECTURE}", revision="main")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("vit_base_patch16_225", r"did you mean 'vit_base_patch16_224.*timm.list_models"),
        (
            "vit_base_patch16_224.augreg",
            r"no pretrained weights.*vit_base_patch16_224\.augreg_in21k",
        ),
        ("vit_base_patch32_plus_256", "no pretrained weights.*pass the module"),
        ("no-such-thing", r"there is no ancestor 'no-such-thing': pass a module"),
        ("nowhere/model.safetensors", "there is no ancestor.*existing safetensors file"),
        ("vit_base_patch16_224.pth", "there is no ancestor.*existing safetensors file"),
        ("hf-hub:name", "no name of the Hub: pass 'org/name@revision'"),
        (Path("org/name"), "there is no ancestor"),
        ("", "names no ancestor"),
        ("a\0b", "names no ancestor"),
        (b"vit_base_patch16_224", "is no ancestor"),
    ],
)
def test_unknown_names(name, match):
    with pytest.raises(ProjectionError, match=match):
        Ancestor.open(name)


def test_weights_that_timm_has_as_a_pickle_only():
    with pytest.raises(BundleError, match=r"only as https.*pth.*never reads pickles"):
        Ancestor.open("vit_huge_patch14_gap_224.in1k_ijepa")


@pytest.mark.parametrize("name", [NAME, ARCHITECTURE])
def test_a_timm_name(hub, vit_tensors, tmp_path, name, streamed):
    sha = published(hub, tmp_path / "made", vit_tensors)
    ancestor = Ancestor.open(name)
    assert ancestor.source == f"{name} ({REPO}@{sha})"
    assert_same(ancestor, vit_tensors)
    x = torch.linspace(-1, 1, 3 * 160 * 160).view(1, 3, 160, 160)
    assert torch.equal(ancestor.module()(x), vit_tensors(x))
    assert_nothing_evil(hub)


def test_a_timm_name_pinned(hub, vit_tensors, tmp_path):
    sha = published(hub, tmp_path / "made", vit_tensors)
    newer = published(hub, tmp_path / "newer", vit_tensors.double())
    vit_tensors.float()
    for ancestor in (Ancestor.open(f"{NAME}@{sha}"), Ancestor.open(NAME, revision=sha)):
        assert ancestor.source.endswith(f"@{sha})")
        assert_same(ancestor, vit_tensors)
    assert Ancestor.open(NAME).source.endswith(f"@{newer})")
    with pytest.raises(ProjectionError, match="two revisions"):
        Ancestor.open(f"{NAME}@{sha}", revision="main")
    with pytest.raises(BundleError, match=r"download the ancestor .*no such revision"):
        Ancestor.open(NAME, revision="v9")


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE"])
def test_offline(hub, vit_tensors, tmp_path, monkeypatch, how):
    sha = published(hub, tmp_path / "made", vit_tensors)
    options = {"local_files_only": how == "local_files_only"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "HF_HUB_OFFLINE")
    with pytest.raises(BundleError, match=f"not in the cache.*{how}"):
        Ancestor.open(NAME, **options)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Ancestor.open(NAME)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "HF_HUB_OFFLINE")
    ancestor = Ancestor.open(NAME, **options)
    assert ancestor.source == f"{NAME} ({REPO}@{sha})" and not hub.requests
    assert_same(ancestor, vit_tensors)


def test_a_bit_that_flipped_in_the_cache_is_found(hub, vit_tensors, tmp_path):
    sha = published(hub, tmp_path / "made", vit_tensors)
    Ancestor.open(f"{REPO}@{sha}", heads=2)
    (blob,) = Path(constants.HF_HUB_CACHE).glob("*/blobs/" + "?" * 64)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(BundleError, match=r"in the cache is not what was.*Delete .*blobs"):
        Ancestor.open(f"{REPO}@{sha}", heads=2)
    blob.unlink()
    assert_same(Ancestor.open(f"{REPO}@{sha}", heads=2), vit_tensors, sizes=False)


def test_what_timm_has_cached_is_enough(hub, vit_tensors, tmp_path, monkeypatch):
    published(hub, tmp_path / "made", vit_tensors)
    with torch.random.fork_rng(devices=[]):
        timm.create_model(NAME, pretrained=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(Ancestor.open(NAME), vit_tensors)


def test_cache_dir_and_token(hub, vit_tensors, tmp_path):
    published(hub, tmp_path / "made", vit_tensors, private=True)
    with pytest.raises(BundleError, match="pass token="):
        Ancestor.open(NAME)
    Ancestor.open(NAME, token="hf_good", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("model.safetensors"))
    assert not list((tmp_path / "home").rglob("model.safetensors"))
    assert_nothing_evil(hub)


@pytest.mark.parametrize("prefix", ["", "hf-hub:", "hf_hub:"])
def test_a_repository_of_timm(hub, model, tmp_path, streamed, prefix):
    sha = published(hub, tmp_path / "made", model, "org/vit", CONFIG)
    ancestor = Ancestor.open(f"{prefix}org/vit@{sha}")
    assert ancestor.source == f"org/vit@{sha}"
    assert_same(ancestor, model)
    assert_same(Ancestor.open(f"{prefix}org/vit", revision=sha), model)
    assert_nothing_evil(hub)


def test_a_sharded_repository(hub, model, tmp_path, streamed):
    folder = shards(tmp_path / "made", model.state_dict(), CONFIG)
    hub.add("org/vit", files_of(folder) | {"other.safetensors": b"not asked for"})
    assert_same(Ancestor.open("org/vit"), model)
    assert hub.asked("other") == 0


def test_a_repository_of_pickles(hub, vit_tensors, tmp_path):
    files = {"pytorch_model.bin": b"\x80\x04 evil", "config.json": json.dumps(CONFIG).encode()}
    for name, ancestor in (("org/vit", "org/vit"), (REPO, NAME)):
        hub.add(name, files)
        with pytest.raises(BundleError, match=r"holds no model.safetensors.*never reads pickles"):
            Ancestor.open(ancestor)
    assert_nothing_evil(hub)
    with pytest.raises(BundleError, match="no such repository"):
        Ancestor.open("org/missing")


def test_a_file_name_of_its_own(hub, vit_tensors, tmp_path, monkeypatch):
    """timm's configs may name a pickle beside which the same weights lie as safetensors."""
    made = write(tmp_path / "made", vit_tensors.state_dict()) / "model.safetensors"
    config = timm.get_pretrained_cfg(NAME)
    monkeypatch.setattr(config, "hf_hub_filename", "open_clip_pytorch_model.bin")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: config)
    hub.add(REPO, {"open_clip_model.safetensors": made.read_bytes()})
    assert_same(Ancestor.open(NAME), vit_tensors)
    monkeypatch.setattr(config, "file", str(made))
    ancestor = Ancestor.open(NAME)
    assert ancestor.source == f"{NAME} ({made})"
    assert_same(ancestor, vit_tensors)
    with pytest.raises(ProjectionError, match="of no revision"):
        Ancestor.open(NAME, revision="main")


@pytest.mark.slow
def test_the_environment_alone(hub, vit_tensors, tmp_path):
    """A process of its own, set up as a user would: by HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE."""
    sha = published(hub, tmp_path / "made", vit_tensors)
    script = f"import weightinit as wi; print(wi.Ancestor.open({NAME!r}).source)"
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "env"), "PYTHONPATH": str(ROOT)}
    for offline in ("0", "1"):
        hub.requests.clear()
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            env={**os.environ, **env, "HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == f"{NAME} ({REPO}@{sha})", done.stderr
    assert not hub.requests
