"""The ``compare`` command: its options, and what it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weightinit.files.writing import check_output

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``compare`` to a parser that has those of a model."""
    option = parser.add_argument
    option(
        "--data",
        required=True,
        help="folder of one sub-folder a class, *.safetensors pack, or digits; a tenth of the "
        "training images is held out to score on, and test images are left alone",
    )
    option("--ancestor", metavar="A", help="timm name, org/name@revision, file or folder")
    option("--method", nargs="+", default=[], metavar="M", help="of inheriting from the ancestor")
    option("--templates", nargs="+", default=[], metavar="B", help="or hypernetworks, by name")
    option("--steps", type=int, default=100, help="of each short training; 0 scores at once alone")
    option("--batch-size", type=int, default=32, metavar="N")
    option("--lrs", nargs="+", type=float, metavar="LR", help="learning rates to try")
    option("--plot", type=Path, metavar="F.png", help="draw the scores into a file")
    option("--force", action="store_true", help="replace the file that is there")


def run(arguments: argparse.Namespace, create: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Compare starts; return what to print, as text and plain values.

    ``create`` builds the model of the arguments, with further ones for ``timm.create_model``.
    """
    import torch

    from weightinit.ancestor.ancestor import Ancestor
    from weightinit.comparison.compare import LRS, compare
    from weightinit.comparison.images import batches_for, labelled_images

    if arguments.plot is not None:
        check_output(arguments.plot, (".png", ".pdf", ".svg"), force=arguments.force)
    seed = arguments.seed or 0
    data = labelled_images(arguments.data, seed)
    model = create(num_classes=data.classes, in_chans=len(data.mean))
    ancestor = None if arguments.ancestor is None else Ancestor.open(arguments.ancestor)
    named = [*arguments.templates, *arguments.method]
    if named and ancestor is not None and not arguments.method:
        named.append("auto")
    options = {"steps": arguments.steps, "batch_size": arguments.batch_size, "seed": seed}
    batches, val = batches_for(model, data, ancestor, **options)
    found = compare(
        model,
        ["random", *named] if named else None,
        batches,
        val=val,
        ancestor=ancestor,
        steps=arguments.steps,
        lrs=arguments.lrs or LRS,
        generator=torch.Generator().manual_seed(seed),
    )
    if arguments.plot is not None:
        found.plot().savefig(arguments.plot, dpi=120)
    return str(found), found.to_dict()
