"""Where bundles are found: shipped, in folders, by no name at all."""

from pathlib import Path

import pytest
from helpers.bundles import assert_equal, make_bundle

from weightinit.errors import BundleError
from weightinit.files import locate
from weightinit.templates.bundle import TemplateBundle, list_templates


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Ship one bundle under the name ``tiny``."""
    root = tmp_path / "package" / "builtin"
    make_bundle().save_pretrained(root / "tiny")
    monkeypatch.setattr(locate.resources, "files", lambda package: tmp_path / "package")


def test_builtin(shipped, tmp_path, monkeypatch):
    assert list_templates() == ["tiny"]
    monkeypatch.chdir(tmp_path)
    make_bundle(seed=1).save_pretrained("tiny")
    bundle = TemplateBundle.from_pretrained("tiny")
    assert bundle.source == "tiny"
    assert_equal(make_bundle(), bundle)
    assert_equal(make_bundle(seed=1), TemplateBundle.from_pretrained("./tiny"))
    assert_equal(make_bundle(seed=1), TemplateBundle.from_pretrained(Path("tiny")))


@pytest.mark.parametrize("name", ["tiny", "folder"])
def test_a_revision_of_what_has_none(shipped, saved, name):
    name = str(saved) if name == "folder" else name
    with pytest.raises(BundleError, match=r"has no revision 'v1': leave revision= out"):
        TemplateBundle.from_pretrained(name, revision="v1")


@pytest.mark.parametrize(
    "name", ["tinny", "", "/no/such/folder", "a/b/c", "../tiny", "tiny@v1", "\0", "a" * 5000, "~no"]
)
def test_names_of_nothing(shipped, name):
    with pytest.raises(BundleError, match=r"org/name@revision"):
        TemplateBundle.from_pretrained(name)


@pytest.mark.parametrize("name", [None, 3, b"tiny", ["tiny"]])
def test_names_of_another_type(name):
    with pytest.raises(BundleError, match="names no bundle"):
        TemplateBundle.from_pretrained(name)


def test_a_close_name_is_suggested(shipped):
    with pytest.raises(BundleError, match="did you mean 'tiny'"):
        TemplateBundle.from_pretrained("tinny")


def test_home_folder(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert TemplateBundle.from_pretrained("~/saved").config.depth == 3


def test_links_into_a_store_are_followed(saved, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for path in saved.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert_equal(make_bundle(fitted=(2,)), TemplateBundle.from_pretrained(tmp_path / "snapshot"))
