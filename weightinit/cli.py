"""The ``weightinit`` command: inspect a model, fill one, list and train templates, run the demo."""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightinit.errors import WeightInitError
from weightinit.training import cli as training

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 on a user's error.

    Examples:
        >>> main(["inspect", "no_such_model"])
        2
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        result = arguments.run(arguments)
    except WeightInitError as error:
        if getattr(arguments, "json", False):
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        print(f"weightinit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"weightinit: {error or 'interrupted'}", file=sys.stderr)
        return 130
    if result is not None:
        text, values = result
        print(json.dumps(values) if arguments.json else text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="weightinit", description=__doc__)
    from weightinit import __version__

    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(run=run)
        return sub

    inspect = command("inspect", _inspect, "Print the anatomy of a timm model.")
    _model_arguments(inspect)

    init = command("init", _init, "Write a checkpoint composed from templates.")
    _model_arguments(init)
    init.add_argument("--templates", metavar="B", help="built-in name, folder or org/name@revision")
    init.add_argument("--scalers", default="interpolate", help="interpolate, linear or fitted")
    init.add_argument("--seed", type=int, help="of what is fresh")
    init.add_argument("-o", "--output", required=True, type=Path, metavar="F.safetensors")

    project = command("project", _project, "Write a checkpoint inherited from one ancestor.")
    project.add_argument(
        "ancestor", help="timm name, org/name@revision, a safetensors file or folder"
    )
    _model_arguments(project)
    project.add_argument("--method", default="auto", help="by name; default: what the pair needs")
    project.add_argument("--seed", type=int, help="of what is drawn")
    project.add_argument("-o", "--output", required=True, type=Path, metavar="F.safetensors")

    command("templates", _templates, "List the template bundles that can be named.")

    templates = command("train-templates", training.run, "Train weight templates on images.")
    training.add_train_arguments(templates)

    hypernet = command(
        "train-hypernet", training.run_hypernet, "Train a hypernetwork on images or texts."
    )
    training.add_hypernet_arguments(hypernet)

    convert = command("convert", _convert, "Turn a published hypernetwork's file into a bundle.")
    convert.add_argument(
        "old", metavar="OLD", help="file of joblib.dump or torch.save; none of it runs"
    )
    convert.add_argument("folder", metavar="DIR", help="of the bundle")
    convert.add_argument("--kind", help="ghn3, logah, tal or pith; default: whichever it is")
    convert.add_argument("--key", help="of the state dict in the file, e.g. ema_state_dict")
    convert.add_argument(
        "--max-shape", type=int, metavar="N", help="that it was trained to predict"
    )
    convert.add_argument("--num-classes", type=int, metavar="N", help="that it was trained on")
    convert.add_argument(
        "--softmax",
        action="store_true",
        help="its graphs had nodes for attention's softmax, as those made by torch 1",
    )
    convert.add_argument("--licence", default="other", help="SPDX identifier of the weights")

    demo = command("demo", _demo, "Initialise five ViTs from one bundle and compare with random.")
    demo.add_argument("-o", "--output", type=Path, default=Path("weightinit-demo.png"))
    demo.add_argument("--steps", type=int, default=150, help="of the short training")
    return parser


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="timm model, e.g. vit_small_patch16_224")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of timm.create_model, e.g. depth=9 embed_dim=320 num_heads=5",
    )


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
    return options


def _create(arguments: argparse.Namespace) -> Any:
    """Build a timm model on the meta device."""
    import timm
    import torch

    options = _options(arguments)
    try:
        with torch.device("meta"):
            return timm.create_model(arguments.name, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        close = timm.list_models(f"*{arguments.name}*")[:5]
        hint = f"; names like it: {close}" if close else "; timm.list_models() lists the names"
        raise WeightInitError(
            f"timm cannot build {arguments.name!r} with {options}: {error}{hint}"
        ) from error


def _inspect(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.anatomy import anatomy

    found = anatomy(_create(arguments))
    return str(found), found.to_dict()


def _init(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.api import plan_templates

    _check_output(arguments.output)
    plan = plan_templates(
        _create(arguments),
        arguments.templates,
        scalers=arguments.scalers,
        generator=_generator(arguments.seed),
    )
    return _write(arguments, plan)


def _project(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.api import plan_projection

    _check_output(arguments.output)
    plan = plan_projection(
        arguments.ancestor,
        _create(arguments),
        method=arguments.method,
        generator=_generator(arguments.seed),
    )
    return _write(arguments, plan)


def _check_output(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise WeightInitError(f"cannot write {path}: -o names a file in an existing folder")


def _generator(seed: int | None) -> Any:
    import torch

    return None if seed is None else torch.Generator().manual_seed(seed)


def _write(arguments: argparse.Namespace, plan: Any) -> tuple[str, Any]:
    """Commit a plan and write the model whole or not at all."""
    from safetensors.torch import save_file

    from weightinit.files.writing import atomic

    report = plan.report()
    model = plan.commit()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    with atomic(arguments.output) as part:
        save_file(state, part, metadata=_metadata(arguments))
    return f"{report}\nwritten to {arguments.output}", {
        "output": os.fspath(arguments.output),
        **report.to_dict(),
    }


def _metadata(arguments: argparse.Namespace) -> dict[str, str]:
    """Return what :meth:`weightinit.Ancestor.open` needs to build the model of a bare file."""
    return {
        "format": "pt",
        "architecture": arguments.name,
        "model_args": json.dumps(_options(arguments)),
    }


def _templates(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.templates.bundle import TemplateBundle, list_templates

    rows = []
    for name in list_templates():
        config = TemplateBundle.from_pretrained(name).config
        sizes = config.sizes
        rows.append(
            {
                "name": name,
                "method": config.method,
                "depth": config.depth,
                "embed_dim": sizes["d"],
                "patch_size": sizes["p"],
                "in_chans": sizes["c"],
                "num_classes": sizes["n"],
            }
        )
    text = "\n".join(
        f"{row['name']}: {row['method']}, auxiliary model {row['depth']} x {row['embed_dim']}, "
        f"patch {row['patch_size']}, {row['in_chans']} channels, {row['num_classes']} classes"
        for row in rows
    )
    return text, rows


def _convert(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.hypernet.convert import convert

    done = convert(
        arguments.old,
        arguments.folder,
        kind=arguments.kind,
        key=arguments.key,
        max_shape=arguments.max_shape,
        num_classes=arguments.num_classes,
        softmax=arguments.softmax,
        licence=arguments.licence,
    )
    return str(done), done.to_dict()


def _demo(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.demo import demo

    return demo(arguments.output, steps=arguments.steps)
