"""Where bundles are found: shipped with the package, in a folder, or on the Hub."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from weightinit.errors import BundleError
from weightinit.files import hub
from weightinit.files.checks import PICKLE_SUFFIXES, parse_json, read_text
from weightinit.files.config import MAX_CONFIG, MAX_CONFIG_ENTRIES
from weightinit.files.hub import CONFIG, FILES, WEIGHTS
from weightinit.text import some

__all__ = ["explain_missing", "kind_of_bundle", "locate", "names"]


def _builtin() -> dict[str, Path]:
    """Return the shipped bundles: from name to folder."""
    root = resources.files("weightinit").joinpath("builtin")
    if not root.is_dir():
        return {}
    return {entry.name: Path(str(entry)) for entry in root.iterdir() if entry.is_dir()}


def names(kind: str = "", family: str = "") -> list[str]:
    """Return the names of the bundles that ship with weightinit, by default those of every kind.

    ``family`` is that of the models which templates are for.
    """

    def fits(folder: Path) -> bool:
        config = json.loads((folder / CONFIG).read_text())
        own = config.get("traits", {}).get("family", "vit")
        return kind in ("", config["kind"]) and family in ("", own)

    found = _builtin().items()
    return sorted(name for name, folder in found if not (kind or family) or fits(folder))


def locate(
    name: str | os.PathLike[str],
    revision: str | None,
    client: hub.Client,
    limits: Mapping[str, int],
    *,
    files: Sequence[str] = FILES,
) -> tuple[Path, str]:
    """Return the folder that holds a bundle, and its source in words; see Client.download."""
    text = os.fspath(name) if isinstance(name, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise BundleError(f"{name!r} names no bundle: pass a name, a folder or 'org/name@revision'")
    builtin = _builtin()
    folder = builtin.get(text) if isinstance(name, str) else None
    # os.path answers False, where Path raises, for what cannot be a path at all.
    if folder is None and os.path.isdir(os.path.expanduser(text)):  # noqa: PTH111, PTH112
        folder = Path(text).expanduser()
    if folder is not None:
        if revision is not None:
            raise BundleError(
                f"{text!r} is {'built in' if text in builtin else 'a folder'} and has no "
                f"revision {revision!r}: leave revision= out"
            )
        return folder, text if text in builtin else str(folder.resolve())
    split = hub.split_revision(text, revision) if isinstance(name, str) else None
    if split is None:
        close = difflib.get_close_matches(text, names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise BundleError(
            f"there is no bundle {text[:200]!r}: {hint}pass one of {names()}, an existing "
            "folder (that holds config.json), or 'org/name@revision' of the Hub"
        )
    repo, revision = split
    folder = client.download(repo, revision, files=files, limits=limits)
    return folder, f"{repo}@{folder.name}"


def kind_of_bundle(name: str | os.PathLike[str]) -> str | None:
    """Return the kind of the bundle of a name; None if it is another's, or cannot be had.

    Of a repository of the Hub, config.json alone is fetched.
    """
    limits = {CONFIG: MAX_CONFIG}
    try:
        folder, _ = locate(name, None, hub.Client(), limits, files=(CONFIG,))
        text = read_text(folder / CONFIG, MAX_CONFIG)
        kind = parse_json(text, CONFIG, MAX_CONFIG_ENTRIES).get("kind")
    except (BundleError, OSError):
        return None
    return kind if isinstance(kind, str) else None


def explain_missing(folder: Path) -> None:
    """Raise a BundleError that says which files a folder lacks, if it does."""
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).exists()]
    if missing:
        pickles = [p.name for p in folder.glob("*") if p.suffix in PICKLE_SUFFIXES]
        found = f" It holds {some(pickles)}, which weightinit never reads." if pickles else ""
        raise BundleError(
            f"{folder} holds no {' and no '.join(missing)}.{found} weightinit reads config.json "
            "and model.safetensors as save_pretrained writes them, and never pickles: pass such a "
            "bundle"
        )
