"""The commands about one timm model, ``inspect``, ``init`` and ``project``, and how it is built."""

from __future__ import annotations

import argparse
import ast
import json
import os
from pathlib import Path
from typing import Any

from weightinit.errors import WeightInitError

__all__ = [
    "add_arguments",
    "add_init_arguments",
    "add_project_arguments",
    "add_seed",
    "create",
    "init",
    "inspect",
    "project",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the name of a timm model, and what it is built with."""
    parser.add_argument("name", help="timm model, e.g. vit_small_patch16_224")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of timm.create_model, e.g. depth=9 embed_dim=320 num_heads=5",
    )


def add_init_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``init``."""
    add_arguments(parser)
    option = parser.add_argument
    option("--templates", metavar="B", help="built-in name, folder or org/name@revision")
    option("--scalers", help="nested, interpolate, linear or fitted; default: the templates' own")
    _add_checkpoint(parser)


def add_project_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``project``."""
    option = parser.add_argument
    option("ancestor", help="timm name, org/name@revision, a safetensors file or folder")
    add_arguments(parser)
    option("--method", default="auto", help="by name; default: what the pair needs")
    option(
        "--calibration",
        metavar="DIR",
        help="folder of images like those you will use, without labels, 'generated' or 'none'; "
        "default: generated ones for a narrower model",
    )
    option(
        "--heads",
        type=int,
        metavar="N",
        help="attention heads of an ancestor whose file lacks them",
    )
    option("--grid", type=int, nargs=2, metavar=("H", "W"), help="its patches, likewise")
    _add_checkpoint(parser)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that write a model."""
    add_seed(parser)
    parser.add_argument(
        "--keep",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="parameters or roles that timm's own initialisation fills",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the report, write nothing")
    parser.add_argument("--force", action="store_true", help="replace the file that is there")
    parser.add_argument("-o", "--output", type=Path, metavar="F.safetensors")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add the seed."""
    parser.add_argument("--seed", type=_seed, metavar="N", help="base seed for all random draws")


def _seed(text: str) -> int:
    """Return a seed that a generator takes."""
    seed = int(text)
    if not -(2**63) <= seed < 2**64:
        raise argparse.ArgumentTypeError(f"{text} has more than 64 bits")
    return seed


def _generator(seed: int | None) -> Any:
    import torch

    return None if seed is None else torch.Generator().manual_seed(seed)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of timm.create_model that --set gives."""
    options: dict[str, Any] = {}
    for item in arguments.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise WeightInitError(f"--set {item!r} is not KEY=VALUE: write e.g. embed_dim=320")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
        try:
            json.dumps(options[key])
        except (TypeError, ValueError) as error:
            raise WeightInitError(
                f"--set {item!r} cannot be stored in a file ({error}): use numbers, texts, lists"
            ) from error
    return options


def create(arguments: argparse.Namespace, **defaults: Any) -> Any:
    """Build a timm model: on the meta device, or on the CPU where its own weights are wanted."""
    import timm
    import torch

    options = defaults | _options(arguments)
    kept = bool(defaults or getattr(arguments, "keep", []))
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu" if kept else "meta"):
            torch.manual_seed(getattr(arguments, "seed", None) or 0)
            return timm.create_model(arguments.name, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        if timm.is_model(arguments.name):
            raise WeightInitError(
                f"timm has {arguments.name!r} and refuses {options}: {error}. Change --set"
            ) from error
        close = timm.list_models(f"*{arguments.name}*")[:5]
        hint = f"names like it: {close}" if close else "timm.list_models() lists the names"
        raise WeightInitError(f"timm cannot build {arguments.name!r}: {error}; {hint}") from error


def inspect(arguments: argparse.Namespace) -> tuple[str, Any]:
    """Return the anatomy of the model, as text and plain values."""
    from weightinit.anatomy import anatomy

    found = anatomy(create(arguments))
    return str(found), found.to_dict()


def init(arguments: argparse.Namespace) -> tuple[str, Any]:
    """Write a model composed from templates; return the report, as text and plain values."""
    from weightinit.api import plan_templates

    _check_checkpoint(arguments)
    plan = plan_templates(
        create(arguments),
        arguments.templates,
        scalers=arguments.scalers,
        generator=_generator(arguments.seed),
        keep=arguments.keep,
    )
    return _write(arguments, plan)


def project(arguments: argparse.Namespace) -> tuple[str, Any]:
    """Write a model inherited from an ancestor; return the report, as text and plain values."""
    from weightinit.ancestor.ancestor import Ancestor
    from weightinit.api import plan_projection
    from weightinit.image_folder import image_batches
    from weightinit.inherit.generated import WORDS

    _check_checkpoint(arguments)
    known: dict[str, Any] = {"heads": arguments.heads}
    if arguments.grid is not None:
        known["grid"] = tuple(arguments.grid)
    model, ancestor = create(arguments), Ancestor.open(arguments.ancestor, **known)
    calibration = arguments.calibration
    if calibration not in (None, *WORDS):
        calibration = image_batches(Path(calibration), ancestor)
    plan = plan_projection(
        ancestor,
        model,
        method=arguments.method,
        calibration=calibration,
        generator=_generator(arguments.seed),
        keep=arguments.keep,
    )
    return _write(arguments, plan)


def _check_checkpoint(arguments: argparse.Namespace) -> None:
    if arguments.dry_run:
        return
    from weightinit.files.writing import check_output

    if arguments.output is None:
        raise WeightInitError("-o F.safetensors is missing: name a file, or pass --dry-run")
    check_output(arguments.output, (".safetensors",), force=arguments.force)


def _write(arguments: argparse.Namespace, plan: Any) -> tuple[str, Any]:
    """Commit a plan and write the model whole or not at all, with what builds it again."""
    from weightinit.files.bundle import copies
    from weightinit.files.writing import atomic, save_tensors

    report = plan.report()
    if arguments.dry_run:
        plan.validate()
        return f"{report}\nnothing was written", {"output": None, **report.to_dict()}
    metadata = {
        "format": "pt",
        "architecture": arguments.name,
        "model_args": json.dumps(_options(arguments)),
    }
    with atomic(arguments.output) as part:
        save_tensors(copies(plan.commit().state_dict()), part, metadata)
    output = os.fspath(arguments.output)
    return f"{report}\nwritten to {output}", {"output": output, **report.to_dict()}
