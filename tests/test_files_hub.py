"""Bundles on the Hub: the real client against a loopback server of the Hub's HTTP interface."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers.bundles import files_of, make_bundle
from huggingface_hub import constants

import weightinit as wi
from weightinit.errors import BundleError
from weightinit.files.hub import _explain
from weightinit.templates.bundle import TemplateBundle

# The client's own LFS upload warns inside its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "org/bundle"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def published(hub, tmp_path):
    """A repository with a bundle, and things that must never be fetched."""
    files = files_of(make_bundle(), tmp_path / "made")
    files["pytorch_model.bin"] = b"\x80\x04 evil"
    files["evil.py"] = b"raise SystemExit"
    hub.sha = hub.add(NAME, files)
    return hub


def load(name=NAME, **options):
    return TemplateBundle.from_pretrained(name, **options)


def assert_sound(bundle):
    expected = make_bundle().tensors
    assert set(bundle.tensors) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(bundle.tensors[name], tensor)


def test_first_download_takes_the_bundle_and_nothing_else(published, tmp_path):
    bundle = load()
    assert_sound(bundle)
    assert bundle.source == f"{NAME}@{published.sha}"
    assert "library_name" in bundle.card
    assert published.asked("evil") == published.asked(".bin") == 0
    assert not published.leaked
    cached = {path.name for path in (tmp_path / "home").rglob("*") if path.is_symlink()}
    assert cached == {"config.json", "model.safetensors", "README.md"}


def test_cached_second_load_asks_for_no_file(published):
    load()
    published.requests.clear()
    assert_sound(load())
    assert published.asked("resolve") == published.asked("content") == 0


def test_cached_commit_asks_for_nothing(published):
    load(f"{NAME}@{published.sha}")
    published.requests.clear()
    assert_sound(load(f"{NAME}@{published.sha}"))
    assert not published.requests


def test_cache_dir(published, tmp_path):
    load(cache_dir=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere").exists()
    assert not list((tmp_path / "home").rglob("model.safetensors"))


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE"])
def test_offline(published, monkeypatch, how):
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    options = {"local_files_only": how == "local_files_only"}
    with pytest.raises(BundleError, match=f"not in the cache.*{how}"):
        load(**options)
    assert not published.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    load()
    published.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "HF_HUB_OFFLINE")
    bundle = load(**options)
    assert bundle.source == f"{NAME}@{published.sha}"
    assert not published.requests


def test_the_cache_serves_when_the_hub_is_down(published, monkeypatch):
    load()
    published.status["api"] = 503
    assert_sound(load())


def test_revisions(published, tmp_path):
    newer = published.add(NAME, files_of(make_bundle(seed=1), tmp_path / "newer"))
    assert load().source == f"{NAME}@{newer}"
    old = load(f"{NAME}@{published.sha}")
    assert_sound(old)
    assert load(revision=published.sha).source == old.source
    assert load(f"{NAME}@main", revision="main").source == f"{NAME}@{newer}"


def test_two_revisions_are_an_error(published):
    with pytest.raises(BundleError, match="two revisions are given"):
        load(f"{NAME}@main", revision="v2")
    assert not published.requests


@pytest.mark.parametrize(
    "revision",
    [
        "/abs/path",
        "../../x",
        "a/../b",
        "a//b",
        "a/.b",
        ".git",
        "a b",
        "a\nb",
        "\x1b[2J",
        "v" * 256,
        5,
    ],
)
def test_a_revision_is_never_a_path(published, revision):
    with pytest.raises(BundleError, match="no name of a branch, tag or commit"):
        load(revision=revision)
    if isinstance(revision, str):
        with pytest.raises(BundleError, match=r"no bundle|no name of a branch"):
            load(f"{NAME}@{revision}")
    with pytest.raises(BundleError, match="no name of a branch, tag or commit"):
        make_bundle().push_to_hub(NAME, revision=revision, token="hf_good")
    assert not published.requests


@pytest.mark.parametrize("revision", ["refs/pr/1", "v1.0", "feature/a-b_c", "a" * 40])
def test_sound_revisions_reach_the_hub(published, revision):
    with pytest.raises(BundleError, match="no such revision"):
        load(revision=revision)
    assert published.requests


@pytest.mark.parametrize(
    "token", ["hf_SECRET\n", " hf_SECRET", "hf_SE\0CRET", "hf_Sé", "", b"hf_S", 5]
)
def test_a_token_that_cannot_be_one_is_refused_and_never_shown(published, token):
    for call in (
        lambda: load(token=token),
        lambda: make_bundle().push_to_hub(NAME, token=token),
        lambda: wi.Ancestor.open(NAME, token=token),
    ):
        with pytest.raises(BundleError, match="token=") as raised:
            call()
        assert "SECRET" not in str(raised.value)
    assert not published.requests


def test_secrets_in_the_clients_messages_are_masked():
    error = ValueError("Illegal header value b'Bearer hf_SECRET and hf_OTHER")
    assert "SECRET" not in _explain(error, NAME) and "OTHER" not in _explain(error, NAME)


@pytest.mark.parametrize(("name", "limit"), [("model.safetensors", 10**6), ("README.md", 2**20)])
def test_a_file_over_its_limit_is_not_fetched(published, tmp_path, name, limit):
    published.add(NAME, {**files_of(make_bundle(), tmp_path / "made"), name: bytes(limit + 1)})
    with pytest.raises(BundleError, match=f"{name}.*over the limit of {limit}"):
        load(max_bytes=10**6)
    assert published.asked("GET /content") == 0
    assert not list((tmp_path / "home").rglob("*.incomplete"))


def test_wrong_revision(published):
    with pytest.raises(BundleError, match=r"no such revision.*branch, tag or commit"):
        load(revision="v9")


def test_missing_repository(published):
    with pytest.raises(BundleError, match=r"no such repository, or it is private.*token="):
        load("org/missing")
    with pytest.raises(BundleError, match="no such repository"):
        load("org/missing", token="hf_good")


def test_private_repository(hub, tmp_path):
    hub.add(NAME, files_of(make_bundle(), tmp_path / "made"), private=True)
    with pytest.raises(BundleError, match=r"private.*pass token="):
        load()
    with pytest.raises(BundleError, match=r"denied \(401\).*hf auth"):
        load(token="hf_wrong")
    assert_sound(load(token="hf_good"))
    assert not hub.leaked


def test_gated_repository(hub, tmp_path):
    hub.add(NAME, files_of(make_bundle(), tmp_path / "made"), gated=True)
    with pytest.raises(BundleError, match=r"gated.*Accept its conditions"):
        load()


def test_forbidden(published):
    published.status["/resolve/"] = 403
    with pytest.raises(BundleError, match=r"denied \(403\)"):
        load()


@pytest.mark.parametrize("word", ["api", "resolve", "content"])
def test_server_error_names_the_connection(published, word):
    published.status[word] = 500
    with pytest.raises(BundleError, match=r"500.*try again"):
        load()
    del published.status[word]
    assert_sound(load())


def test_no_server(published, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BundleError, match="Check the connection and try again"):
        load()


def test_a_cut_transfer_is_resumed(published):
    published.cuts = 2
    assert_sound(load())
    assert published.asked("GET /content") == 3


def test_a_transfer_that_is_always_cut_leaves_nothing(published, tmp_path):
    published.cuts = 1_000
    with pytest.raises(BundleError, match="nothing partial is kept"):
        load()
    assert not [p for p in (tmp_path / "home").rglob("*") if "incomplete" in p.name]
    with pytest.raises(BundleError, match=r"not in the cache|holds no"):
        load(local_files_only=True)
    published.cuts = 0
    assert_sound(load())


def test_wrong_sha256(hub, tmp_path):
    files = files_of(make_bundle(), tmp_path / "made")
    data = bytearray(files["model.safetensors"])
    data[-3] ^= 1
    hub.add(NAME, files | {"model.safetensors": bytes(data)})
    with pytest.raises(BundleError, match=r"sha256.*Delete"):
        load()


def test_a_damaged_cache_is_refused_and_the_advice_heals_it(published, tmp_path):
    load()
    (link,) = (tmp_path / "home").rglob("model.safetensors")
    blob = link.resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(BundleError, match="cut off"):
        load()
    blob.write_bytes(blob.read_bytes() + b"\xff")
    with pytest.raises(BundleError, match=f"Delete {blob}"):
        load()
    blob.unlink()
    assert_sound(load())


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_file(hub, tmp_path, missing):
    files = files_of(make_bundle(), tmp_path / "made")
    del files[missing]
    hub.add(NAME, files | {"pytorch_model.bin": b"\x80\x04 evil"})
    with pytest.raises(BundleError, match=f"holds no {missing}.*never pickles"):
        load()
    assert hub.asked(".bin") == 0


def test_a_repository_of_pickles_only(hub):
    hub.add(NAME, {"pytorch_model.bin": b"\x80\x04 evil"})
    with pytest.raises(BundleError, match=r"no config.json and no model.safetensors.*pickles"):
        load()
    assert hub.asked(".bin") == 0


def test_push_creates_a_repository_that_loads(hub):
    bundle = make_bundle()
    pushed = bundle.push_to_hub("org/new", private=True, token="hf_good")
    repo = hub.repos["org/new"]
    assert repo.private
    assert pushed == f"org/new@{repo.refs['main']}"
    assert len(repo.commits) == 2  # the creation and one commit of ours
    assert hub.asked("PUT /content") == 1
    card = repo.commits[repo.refs["main"]]["README.md"].decode()
    assert hub.cards == [card]
    assert 'wi.init_from_templates(model, "org/new")' in card
    again = load(pushed, token="hf_good")
    assert_sound(again)
    assert again.source == pushed


def test_push_keeps_the_readme_of_the_repository(published):
    published.repos[NAME].commit({"README.md": b"mine"}, parent="main")
    make_bundle(seed=1).push_to_hub(NAME, token="hf_good", commit_message="again")
    repo = published.repos[NAME]
    tree = repo.commits[repo.refs["main"]]
    assert tree["README.md"] == b"mine"
    assert "evil.py" in tree


def test_push_takes_the_card_along_that_was_loaded(published, tmp_path):
    folder = tmp_path / "mine"
    make_bundle().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Ours\n")
    load(folder).push_to_hub("org/new", token="hf_good")
    repo = published.repos["org/new"]
    assert b"# Ours" in repo.commits[repo.refs["main"]]["README.md"]


def test_push_to_a_branch(published):
    pushed = make_bundle(seed=1).push_to_hub(NAME, revision="v2", token="hf_good")
    assert published.repos[NAME].refs["main"] == published.sha
    assert load(revision="v2").source == pushed
    make_bundle(seed=2).push_to_hub(NAME, revision="v2", token="hf_good")


def test_push_as_a_pull_request(published):
    pushed = make_bundle(seed=1).push_to_hub(NAME, create_pr=True, token="hf_good")
    assert published.repos[NAME].refs["main"] == published.sha
    assert load(pushed).source == pushed
    with pytest.raises(BundleError, match="pass one"):
        make_bundle().push_to_hub(NAME, create_pr=True, revision="v2")


def test_push_without_permission(hub):
    with pytest.raises(BundleError, match=r"cannot upload.*token="):
        make_bundle().push_to_hub("org/new")
    with pytest.raises(BundleError, match=r"denied \(401\)"):
        make_bundle().push_to_hub("org/new", token="hf_wrong")
    hub.status["create"] = 403
    with pytest.raises(BundleError, match=r"denied \(403\)"):
        make_bundle().push_to_hub("org/new", token="hf_good")


def test_push_that_fails_half_way_changes_nothing(published):
    published.status["/commit/"] = 500
    with pytest.raises(BundleError, match="500"):
        make_bundle(seed=1).push_to_hub(NAME, token="hf_good")
    assert published.repos[NAME].refs["main"] == published.sha


def test_push_refuses_before_it_asks(hub):
    bundle = make_bundle()
    bundle.tensors["outside.pos"][0, 0] = torch.nan
    with pytest.raises(BundleError, match="NaN"):
        bundle.push_to_hub("org/new", token="hf_good")
    with pytest.raises(BundleError, match="org/name"):
        make_bundle().push_to_hub("not a name", token="hf_good")
    assert not hub.requests


@pytest.mark.slow
def test_the_environment_alone(published, tmp_path):
    """A process of its own, set up as a user would: by HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE."""
    script = f"""
import sys
import weightinit.templates.bundle
assert "huggingface_hub" not in sys.modules and "timm" not in sys.modules
print(weightinit.templates.bundle.TemplateBundle.from_pretrained({NAME!r}).source)
"""
    env = {
        **os.environ,
        "HF_ENDPOINT": published.endpoint,
        "HF_HOME": str(tmp_path / "env"),
        "PYTHONPATH": str(ROOT),
    }
    for offline in ("0", "1"):
        published.requests.clear()
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            env={**env, "HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == f"{NAME}@{published.sha}", done.stderr
    assert not published.requests
    assert huggingface_hub.__version__
