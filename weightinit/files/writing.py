"""Writing a bundle: files that appear all together or not at all, and the model card."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from weightinit.errors import BundleError
from weightinit.files.hub import CARD, CONFIG, REPO, WEIGHTS

if TYPE_CHECKING:
    from weightinit.files.config import BundleConfig

__all__ = ["model_card", "replace_files"]

# The config, which states the digest of the weights, comes last: a folder without it is no bundle.
ORDER = (CARD, WEIGHTS, CONFIG)


def replace_files(folder: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with an empty folder, then move what it wrote into ``folder``.

    Every file is written and synced first and then renamed into place, so that a file of the same
    name that is open or mapped somewhere keeps its contents. After any exception the folder is as
    it was before. Files of other names are left alone.

    Raises:
        BundleError: if the folder cannot be written to.
    """
    disposable, temp = True, folder
    try:
        created = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            new, old = temp / "new", temp / "old"
            new.mkdir()
            old.mkdir()
            write(new)
            names = [name for name in ORDER if (new / name).exists()]
            for name in names:
                _sync(new / name)
                if os.path.lexists(folder / name):
                    _link(folder / name, old / name)
            disposable = False
            try:
                for name in names:
                    os.replace(new / name, folder / name)  # noqa: PTH105 (tests inject faults here)
            except BaseException:
                for name in names:
                    if os.path.lexists(old / name):
                        (old / name).replace(folder / name)
                    elif not (new / name).exists():
                        (folder / name).unlink(missing_ok=True)
                disposable = True
                raise
            disposable = True
            with suppress(OSError):  # not every file system can sync a folder
                _sync(folder)
        finally:
            if disposable:  # else the only copy of what stood there is in it
                shutil.rmtree(temp, ignore_errors=True)
            if created:
                with suppress(OSError):
                    folder.rmdir()  # succeeds only if it is empty: nothing was saved
    except OSError as error:
        state = "nothing there was changed" if disposable else f"what stood there is in {temp}"
        raise BundleError(
            f"cannot save the bundle to {folder} ({error}); {state}. Choose a folder that can be "
            "written to, with space left"
        ) from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a file system or platform without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


#: Of one tensor of a ViT-S: its patch embedding, 384 channels of 16 rows.
MOST_ROWS = 384 * 16
#: How the weights of a bundle get into a model, by kind, or method.
USES = {
    "templates": "wi.init_from_templates(model, {name})",
    "pith": "wi.project_from(ancestor, model, method=wi.PITH({name}))  # any name, file or module",
    "tal": "wi.init_from_hypernet(model, {name}, task=images, ancestor=ancestor)",
    "hypernetwork": "wi.init_from_hypernet(model, {name})",
}


def _use(config: BundleConfig, name: str) -> list[str]:
    """Return the lines of Python by which a bundle is used."""
    size = "depth=9, num_classes=100"
    if config.options.get("max_ck", MOST_ROWS) < MOST_ROWS:  # a decoder too small for that
        size = "img_size=32, patch_size=8, embed_dim=96, num_heads=6, num_classes=10"
    model = [
        "import timm, weightinit as wi",
        f'model = timm.create_model("vit_small_patch16_224", {size})',
    ]
    if config.options.get("primitives") == 18:
        model = [
            "import transformers, weightinit as wi",
            "model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=9))",
        ]
    use = (
        USES["templates"]
        if config.kind == "templates"
        else USES.get(config.method, USES["hypernetwork"])
    )
    return [*model, use.format(name=name)]


def model_card(config: BundleConfig, shapes: dict[str, tuple[int, ...]], name: str) -> str:
    """Return the text of a README.md for the Hub: metadata, use, sizes, provenance.

    Args:
        config: of the bundle.
        shapes: of its tensors, by name.
        name: what a user would pass to load it.
    """
    ancestor = config.provenance.get("ancestor")
    metadata = {
        "library_name": "weightinit",
        "license": config.licence.lower(),
        "tags": ["weightinit", f"weight-{config.kind}", config.method],
        **({"base_model": ancestor} if REPO.fullmatch(str(ancestor)) else {}),
    }
    sizes = " ".join(f"{label}={size}" for label, size in config.sizes.items())
    learned = config.kind == "templates"
    what = "Learned with an auxiliary model" if learned else "A hypernetwork with an encoder"
    rows = [f"| `{key}` | {' x '.join(map(str, shape))} |" for key, shape in shapes.items()]
    fitted = [
        f"- scalers fitted for depth {entry['depth']}, "
        + " ".join(f"{label}={size}" for label, size in entry["sizes"].items())
        for entry in config.fitted
    ]
    # JSON is YAML, so quoted strings cannot add keys; an indented block cannot be broken out of.
    provenance = json.dumps(config.provenance, indent=2, ensure_ascii=False)
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in metadata.items()),
            "---",
            "",
            f"# Weight {config.kind} ({config.method})",
            "",
            "For the Python library weightinit, which fills a transformer of any depth and width.",
            "",
            *(f"    {line}" for line in _use(config, json.dumps(name))),
            "",
            f"{what} of {config.depth} blocks, sizes {sizes}.",
            "",
            "| tensor | shape |",
            "|---|---|",
            *rows,
            *(["", "## Fitted sizes", "", *fitted] if fitted else []),
            "",
            "## Provenance",
            "",
            *(re.sub("^", "    ", provenance, flags=re.MULTILINE).split("\n")),
            "",
        ]
    )
