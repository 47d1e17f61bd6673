"""Ancestors in all their forms: the same tensors whatever the door, and nothing written to them."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import timm
import torch
from helpers.models import state_hash, vit
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn

import weightinit as wi
from weightinit.ancestor.ancestor import Ancestor
from weightinit.ancestor.models import Library
from weightinit.ancestor.weights import Weights
from weightinit.errors import AnatomyError, BundleError, ProjectionError

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = "test_vit"  # timm's own tiny model for tests, with weights on the Hub
NAME, REPO = f"{ARCHITECTURE}.r160_in1k", f"timm/{ARCHITECTURE}.r160_in1k"
ARGUMENTS = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "num_heads": 2}
#: The tiny model as a config of timm's describes it.
CONFIG = {
    "architecture": ARCHITECTURE,
    "num_classes": 5,
    "model_args": {**ARGUMENTS, "depth": 3},
    "pretrained_cfg": {"input_size": [1, 8, 8], "num_classes": 5, "classifier": "head"},
}


@pytest.fixture
def model():
    """The model that CONFIG describes, with random weights that no other model has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model(ARCHITECTURE, num_classes=5, **CONFIG["model_args"])
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    return model.eval()


@pytest.fixture(autouse=True)
def global_generator():
    """No door touches the global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def streamed(monkeypatch):
    """Fail where a library loads the weights instead."""

    def loaded(self):
        raise AssertionError("not streamed")

    monkeypatch.setattr(Library, "loaded", loaded)


def write(folder, state, config=None, **metadata):
    """Write a folder as timm does."""
    folder.mkdir(exist_ok=True, parents=True)
    state = {name: value.detach().contiguous().clone() for name, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt", **metadata})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def shards(folder, state, config=None):
    """Write a folder with the weights in two shards and an index."""
    write(folder, state, config)
    (folder / "model.safetensors").unlink()
    index = {}
    for number, names in enumerate((list(state)[::2], list(state)[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name].detach().clone() for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def files_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def assert_same(ancestor, model, *, sizes=True):
    """Every stored tensor and every part is the model's own."""
    expected = wi.anatomy(model)
    if sizes:
        assert ancestor.anatomy.sizes == expected.sizes
        assert ancestor.anatomy.traits == expected.traits
    parameters = dict(model.named_parameters())
    assert len(ancestor.anatomy.specs) == len(expected.specs)
    for spec in ancestor.anatomy.specs:
        own = expected.spec(spec.key)
        stored = ancestor.stored(spec.name)
        assert torch.equal(stored, parameters[own.name])
        assert stored.dtype == parameters[own.name].dtype and not stored.requires_grad
        assert stored.is_contiguous() and stored.device.type == "cpu"
    for mine, theirs in zip(ancestor.anatomy.blocks, expected.blocks, strict=True):
        assert mine.keys() == theirs.keys()
        for role, piece in mine.items():
            part = ancestor.part(piece)
            spec = theirs[role].spec
            own = expected.split(spec, parameters[spec.name].detach())[role]
            assert torch.equal(part, own.to(part.dtype)) and part.shape == piece.size


# ---------------------------------------------------------------------------------- live objects


def test_a_module_is_read_and_never_written(model):
    model.train()
    before = state_hash(model)
    ancestor = wi.Ancestor.open(model)
    assert_same(ancestor, model)
    copy = ancestor.module()
    assert not copy.training and model.training
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert state_hash(model) == before
    assert ancestor.source == "a VisionTransformer" and "depth=3" in repr(ancestor)
    assert Ancestor.open(ancestor) is ancestor
    assert Ancestor.open(ancestor, heads=2) is ancestor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(model, dtype, tmp_path):
    model = model.to(dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for source in (model, write(tmp_path / "made", model.state_dict(), CONFIG)):
        ancestor = Ancestor.open(source)
        assert_same(ancestor, model)
        piece = ancestor.anatomy.blocks[0]["attn.v.weight"]
        assert ancestor.part(piece).dtype == expected
        assert ancestor.stored("blocks.0.attn.qkv.weight").dtype == dtype
    # A folder's model runs in fp32, or in fp64 if that is what is stored.
    assert ancestor.module().head.weight.dtype == expected


def test_other_dtypes_are_refused():
    model = vit().to(torch.float8_e4m3fn)
    ancestor = Ancestor.open(model)
    with pytest.raises(BundleError, match=r"head.weight .* is torch.float8.*bfloat16"):
        ancestor.stored("head.weight")


def test_a_tensor_of_other_strides_has_its_parts():
    model = vit().to(memory_format=torch.channels_last)
    assert_same(Ancestor.open(model), model)


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


def test_what_is_no_ancestor(model):
    for source in (None, 3, [model]):
        with pytest.raises(ProjectionError, match="is no ancestor: pass a module"):
            Ancestor.open(source)
    with pytest.raises(ProjectionError, match="leave revision= out"):
        Ancestor.open(model, revision="main")


def test_a_piece_of_another_model_is_refused(model):
    ancestor = Ancestor.open(model)
    other = wi.anatomy(vit(embed_dim=32))
    with pytest.raises(AnatomyError, match="is not of a VisionTransformer"):
        ancestor.part(other.blocks[0]["attn.q.weight"])
    with pytest.raises(AnatomyError, match="no parameter is called"):
        ancestor.stored("blocks.7.attn.qkv.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(model, value, tmp_path):
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[-1, -1] = value
    for source in (model, write(tmp_path / "made", model.state_dict(), CONFIG)):
        ancestor = Ancestor.open(source)
        ancestor.part(ancestor.anatomy.blocks[0]["attn.q.weight"])
        with pytest.raises(BundleError, match=r"blocks\.1\.attn\.qkv\.weight .* NaN or infinity"):
            ancestor.part(ancestor.anatomy.blocks[1]["attn.q.weight"])


def test_a_sum_that_overflows_is_no_fault():
    model = vit().to(torch.float16)
    with torch.no_grad():
        model.pos_embed.fill_(60_000)
    assert Ancestor.open(model).stored("pos_embed").max() == 60_000


# ----------------------------------------------------------------------------------------- files


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


def test_the_names_of_wrappers_in_a_file(model, tmp_path, streamed):
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    ancestor = Ancestor.open(write(tmp_path / "made", state, CONFIG))
    assert_same(ancestor, model)
    assert torch.equal(ancestor.module().head.weight, model.head.weight)


def test_metadata_says_what_a_bare_file_is(model, tmp_path, streamed):
    arguments = json.dumps({**CONFIG["model_args"], "num_classes": 5})
    metadata = {"architecture": ARCHITECTURE, "model_args": arguments}
    file = write(tmp_path / "made", model.state_dict(), **metadata) / "model.safetensors"
    ancestor = Ancestor.open(file)
    assert_same(ancestor, model)
    assert torch.equal(ancestor.module().head.weight, model.head.weight)
    metadata["architecture"] = "of_another_time"
    file = write(tmp_path / "made", model.state_dict(), **metadata) / "model.safetensors"
    assert Ancestor.open(file, heads=2).anatomy.depth == 3


def test_the_only_file_of_a_folder_may_have_any_name(model, tmp_path):
    folder = write(tmp_path / "made", model.state_dict(), CONFIG)
    (folder / "model.safetensors").rename(folder / "vit_tiny_patch16_224.safetensors")
    assert_same(Ancestor.open(folder), model)
    shutil.copy(folder / "vit_tiny_patch16_224.safetensors", folder / "b.safetensors")
    with pytest.raises(BundleError, match="pass the one that is meant"):
        Ancestor.open(folder)


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


def test_each_stored_tensor_is_read_once_and_one_is_alive(model, tmp_path, monkeypatch):
    ancestor = Ancestor.open(write(tmp_path / "made", model.state_dict(), CONFIG))
    alive, most, reads = weakref.WeakSet(), 0, []
    real = Weights.read

    def read(self, name):
        nonlocal most
        tensor = real(self, name)
        alive.add(tensor)
        reads.append(name)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(Weights, "read", read)
    seen = ancestor.anatomy
    for pieces in (*seen.blocks, seen.outside):
        for piece in pieces.values():
            ancestor.part(piece)
    assert len(reads) == len(seen.specs) == len(set(reads))
    assert most == 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts pages as Linux does")
def test_memory_stays_near_one_tensor(tmp_path):
    """A file of 200 MB, its largest tensors 16 MB each, in a process of its own."""
    with torch.device("meta"):
        shapes = vit(embed_dim=1024, depth=4).state_dict()
    state = {name: torch.zeros(value.shape) for name, value in shapes.items()}
    folder = write(tmp_path, state)
    assert (folder / "model.safetensors").stat().st_size > 190 * 2**20
    script = """
import sys, torch
from weightinit.ancestor.ancestor import Ancestor

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

ancestor = Ancestor.open(sys.argv[1], heads=16)
anatomy = ancestor.anatomy
ancestor.part(anatomy.outside["norm.weight"])
open("/proc/self/clear_refs", "w").write("5")
before = peak()
for pieces in (anatomy.outside, *anatomy.blocks):
    for piece in pieces.values():
        ancestor.part(piece)
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "model.safetensors")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * 16 * 2**10  # KiB


# ------------------------------------------------------------------------- files that are not sound


def damage(change):
    """Return a builder of a folder whose weights file is changed."""

    def build(folder, model):
        file = write(folder, model.state_dict(), CONFIG) / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return build


def folder_with(change):
    """Return a builder of a folder whose state or config is changed."""

    def build(folder, model):
        state, config = dict(model.state_dict()), json.loads(json.dumps(CONFIG))
        change(state, config)
        write(folder, state, config)

    return build


def only(*names, config=True):
    def build(folder, model):
        write(folder, model.state_dict(), CONFIG if config else None)
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(b"\x80\x04 evil")

    return build


def index(change):
    def build(folder, model):
        file = shards(folder, model.state_dict(), CONFIG) / "model.safetensors.index.json"
        value = json.loads(file.read_text())
        change(folder, value)
        file.write_text(json.dumps(value))

    return build


UNSOUND = {
    "truncated": (damage(lambda data: data[:-1]), "damaged, cut off.*again"),
    "half a header": (damage(lambda data: data[:40]), "damaged, cut off.*again"),
    "empty": (damage(lambda data: b""), "damaged, cut off.*again"),
    "wrong header": (damage(lambda data: data[:9] + b"x" + data[10:]), "damaged, cut off.*again"),
    "archive": (damage(lambda data: b"PK\x03\x04" + data), "is a pickle.*pass the module"),
    "pickle": (damage(lambda data: b"\x80\x02}q\x00X" + data), "is a pickle.*pass the module"),
    "old pickle": (damage(lambda data: b"(dp0\nS'a'\np1\n" + data), "damaged, cut off"),
    "pickles": (
        only("pytorch_model.bin", "model.pth"),
        "no model.safetensors.*holds model.pth, pytorch_model.bin.*never reads pickles",
    ),
    "nothing": (only(config=False), "holds no model.safetensors and no model.*index.json"),
    "missing": (
        folder_with(lambda state, config: state.pop("blocks.1.norm1.weight")),
        "the weights lack blocks.1.norm1.weight.*pass the module",
    ),
    "another shape": (
        folder_with(lambda state, config: state.update({"norm.weight": torch.ones(3)})),
        r"differ in norm.weight \[3\] for \[16\]",
    ),
    "a block too many": (
        folder_with(lambda state, config: config["model_args"].update(depth=2)),
        r"have beside blocks\.2\.",
    ),
    "another model": (
        folder_with(
            lambda state, config: (state.clear(), state.update({c: torch.ones(8) for c in "abc"}))
        ),
        "lack .*have beside a",
    ),
    "no architecture": (
        folder_with(lambda state, config: config.pop("architecture")),
        "neither timm's 'architecture' nor transformers' 'model_type'",
    ),
    "unknown architecture": (
        folder_with(lambda state, config: config.update(architecture="vit_of_2031")),
        "'vit_of_2031'.*update timm",
    ),
    "wrong values": (
        folder_with(
            lambda state, config: (
                config.clear(),
                config.update(model_type="vit", hidden_size="wide"),
            )
        ),
        "transformers cannot",
    ),
    "quantized": (
        folder_with(
            lambda state, config: (
                config.clear(),
                config.update(model_type="vit", quantization_config={"quant_method": "gptq"}),
            )
        ),
        "quantized weights.*pass the module",
    ),
    "wrong arguments": (
        folder_with(lambda state, config: config["model_args"].update(depht=2)),
        "timm cannot build",
    ),
    "reads a pickle": (
        folder_with(lambda state, config: config["model_args"].update(checkpoint_path="a.pth")),
        "without .*checkpoint_path",
    ),
    "no arguments": (
        folder_with(lambda state, config: config.update(model_args=[])),
        "must be an object",
    ),
    "depth bomb": (
        folder_with(lambda state, config: config["model_args"].update(depth=10**9)),
        r"has depth 1000000000, for \d+ tensors",
    ),
    "transformers depth bomb": (
        folder_with(
            lambda state, config: config.update(
                architecture=None, model_type="vit", num_hidden_layers=10**9
            )
        ),
        "has num_hidden_layers 1000000000",
    ),
    "config cut off": (
        lambda folder, model: (write(folder, model.state_dict()) / "config.json").write_text(
            '{"architecture":'
        ),
        "not sound JSON",
    ),
    "a bundle": (
        lambda folder, model: write(
            folder, {"a": torch.ones(2)}, {"schema": 1, "kind": "templates", "sha256": ""}
        ),
        "pass it to init_from_templates",
    ),
    "index leads away": (
        index(lambda folder, value: value["weight_map"].update({"a": "../a.safetensors"})),
        "no safetensors file beside it",
    ),
    "index without map": (
        index(lambda folder, value: value.pop("weight_map")),
        "has no weight_map",
    ),
    "missing shard": (
        index(lambda folder, value: (folder / "model-00002-of-00002.safetensors").unlink()),
        "lacks model-00002-of-00002.safetensors",
    ),
    "shard of another model": (
        index(
            lambda folder, value: save_file(
                {"a": torch.ones(2)}, folder / "model-00002-of-00002.safetensors"
            )
        ),
        "the shards lack",
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_folders(name, model, tmp_path):
    build, words = UNSOUND[name]
    build(tmp_path / "made", model)
    with pytest.raises(BundleError, match=words) as raised:
        Ancestor.open(tmp_path / "made")
    assert len(str(raised.value)) < 2_000 and str(raised.value).isprintable()


def test_unsound_files(model, tmp_path):
    pickled = tmp_path / "model.pth"
    torch.save(model.state_dict(), pickled)
    renamed = tmp_path / "model.safetensors"
    shutil.copy(pickled, renamed)
    for file in (pickled, renamed, str(pickled)):
        with pytest.raises(BundleError, match=r"is a pickle.*never reads pickles.*pass the module"):
            Ancestor.open(file, heads=2)
    other = tmp_path / "model.weights"
    other.write_bytes(b"")
    with pytest.raises(BundleError, match=r"not called \.safetensors"):
        Ancestor.open(other)
    metadata = {"architecture": ARCHITECTURE, "model_args": '{"pretrained": true}'}
    file = write(tmp_path, model.state_dict(), **metadata) / "model.safetensors"
    with pytest.raises(BundleError, match="model_args"):
        Ancestor.open(file)


def test_a_file_that_is_gone_when_it_is_read(model, tmp_path):
    folder = write(tmp_path / "made", model.state_dict(), CONFIG)
    ancestor = Ancestor.open(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BundleError, match="cannot read"):
        ancestor.stored("head.weight")


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


# ------------------------------------------------------------------------ the Hub and the libraries


@pytest.fixture
def vit_tensors():
    """Tensors for timm's own model of NAME: random, and none of them as timm draws it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = timm.create_model(NAME)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def published(server, folder, model, name=REPO, config=None, **options):
    """Publish a repository with weights and with what must never be fetched."""
    files = files_of(write(folder, model.state_dict(), config))
    traps = {"pytorch_model.bin": b"\x80\x04 evil", "evil.py": b"raise SystemExit"}
    return server.add(name, files | traps, **options)


def assert_nothing_evil(server):
    assert server.asked("evil") == server.asked(".bin") == 0 and not server.leaked


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


def test_weights_in_another_dialect_go_through_timm(hub, vit_tensors, tmp_path):
    """A file of another image size, whose positions timm resamples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        larger = timm.create_model(NAME, img_size=224)
    published(hub, tmp_path / "made", larger)
    with torch.random.fork_rng(devices=[]):
        expected = timm.create_model(NAME, pretrained=True)
    ancestor = Ancestor.open(NAME)
    assert REPO in ancestor.source
    assert_same(ancestor, expected)
    assert ancestor.module() is not ancestor.module()
    assert hub.asked(".bin") == 0


def test_what_timm_would_leave_random(hub, tmp_path):
    """timm loads these with strict=False: without a final norm, which is sound, or a stage."""
    name = "convnextv2_atto.fcmae"
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(name)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    hub.add(f"timm/{name}", files_of(write(tmp_path / "made", state)))
    ancestor = Ancestor.open(name)
    assert torch.equal(ancestor.stored("stem.0.weight"), model.stem[0].weight)
    assert ancestor.stored("head.norm.weight").min() == 1
    state = {k: v for k, v in state.items() if not k.startswith("stages.3.blocks.0")}
    hub.add(f"timm/{name}", files_of(write(tmp_path / "made", state)))
    with pytest.raises(BundleError, match=r"the weights lack .*stages\.3\.blocks\.0"):
        Ancestor.open(name)


def test_timm_saves_what_is_opened(model, tmp_path, streamed):
    folder, arguments = tmp_path / "made", CONFIG["model_args"]
    timm.models.save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    assert_same(Ancestor.open(tmp_path / "made"), model)


def hf_config(kind="ViT", **changes):
    import transformers

    sizes = {
        "ViT": {"image_size": 8, "patch_size": 2, "num_labels": 5},
        "Bert": {"vocab_size": 30, "max_position_embeddings": 16},
        "GPT2": {"vocab_size": 30, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 1},
    }[kind]
    common = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    if kind != "GPT2":
        common["intermediate_size"] = 24
    return getattr(transformers, f"{kind}Config")(**common, **sizes, **changes)


HF = {
    "ViTForImageClassification": "ViT",
    "ViTModel": "ViT",
    "BertModel": "Bert",
    "BertForMaskedLM": "Bert",
    "BertForPreTraining": "Bert",
    "GPT2LMHeadModel": "GPT2",
    "GPT2Model": "GPT2",
}


@pytest.fixture
def quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def hf_model(name, **changes):
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = getattr(transformers, name)(hf_config(HF[name], **changes)).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("name", HF)
def test_models_of_transformers(name, hub, tmp_path, quiet, monkeypatch):
    model = hf_model(name)
    model.save_pretrained(tmp_path / "made")
    sha = hub.add("org/hf", files_of(tmp_path / "made") | {"pytorch_model.bin": b"\x80\x04 evil"})
    with monkeypatch.context() as patch:
        patch.setattr(Library, "loaded", None)
        ancestor = Ancestor.open("org/hf")
        assert ancestor.source == f"org/hf@{sha}"
        assert_same(ancestor, model)
    copy = ancestor.module()
    assert type(copy) is type(model) and not copy.training
    for mine, theirs in zip(copy.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(Ancestor.open("org/hf"), model)
    assert hub.asked(".bin") == 0


def test_a_base_model_whose_class_is_not_known(tmp_path, quiet):
    model = hf_model("ViTModel")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for names in (["MyOwnViT"], ["BertModel"], ["Trainer"], None):
        (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": names}))
        assert_same(Ancestor.open(tmp_path), model)


def test_transformers_converts_what_has_old_names(tmp_path, quiet):
    model = hf_model("BertForMaskedLM")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): value
        for name, value in load_file(file).items()
    }
    old |= {
        "cls.seq_relationship.weight": torch.ones(2, 12),
        "cls.seq_relationship.bias": torch.ones(2),
    }
    save_file(old, file, metadata={"format": "pt"})
    ancestor = Ancestor.open(tmp_path)
    assert_same(ancestor, model)
    assert ancestor.source == str(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("classifier.weight"), "lack classifier.weight"),
        (
            lambda state: state.update({"classifier.weight": torch.ones(3, 12)}),
            "differ in classifier",
        ),
        (
            lambda state: state.update(
                {k.replace("r.1", "r.2"): v.clone() for k, v in state.items() if "layer.1" in k}
            ),
            r"\.2\.",
        ),
    ],
)
def test_transformers_leaves_nothing_random(change, words, tmp_path, quiet):
    hf_model("ViTForImageClassification").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match=words):
        Ancestor.open(tmp_path)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_fetches_nothing(key, tmp_path, quiet):
    """transformers would load such a kernel, which is code, from the Hub."""
    model = hf_model("ViTModel")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    evil = {key: "evil/kernel", "auto_map": {"AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config | evil))
    ancestor = Ancestor.open(tmp_path)
    assert_same(ancestor, model)
    assert ancestor.module().config._attn_implementation in ("sdpa", "eager")


def test_other_models_of_transformers_are_for_the_user_to_load(tmp_path):
    """Their constructors may load further weights."""
    config = {"model_type": "detr", "backbone": "resnet50", "use_pretrained_backbone": True}
    write(tmp_path, {"a": torch.ones(2)}, config)
    with pytest.raises(ProjectionError, match=r"model_type 'detr'.*with transformers and pass"):
        Ancestor.open(tmp_path)


def test_without_transformers(tmp_path, monkeypatch, quiet):
    hf_model("ViTModel").save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ProjectionError, match="pip install transformers"):
        Ancestor.open(tmp_path)


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
