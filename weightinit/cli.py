"""The ``weightinit`` command: inspect a model, fill one, list and train bundles, run the demo."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from weightinit import model_cli as model
from weightinit.comparison import cli as comparison
from weightinit.errors import WeightInitError
from weightinit.training import cli as training

__all__ = ["main"]

#: Arguments of Python that the shell has under the same names.
OPTIONS = (
    "ancestor", "calibration", "grid", "heads", "keep", "lrs", "method", "scalers", "steps",
    "templates",
)  # fmt: skip
#: Sizes of an auxiliary model that a list of bundles shows, where it has them.
SIZES = {"embed_dim": "d", "patch_size": "p", "in_chans": "c", "num_classes": "n"}
#: Where the demo draws by default; what it drew before is replaced.
DEMO = Path("weightinit-demo.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 2 on a user's error, or 130 after Ctrl-C.

    Examples:
        >>> main(["inspect", "no_such_model"])
        2
    """
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except BrokenPipeError:  # who read the output has left, and python would say so at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"weightinit: cannot print: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except KeyboardInterrupt as error:
        print(f"weightinit: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    try:
        result = arguments.run(arguments)
    except (WeightInitError, OSError) as error:
        message = str(error)
        spoken = [o for o in OPTIONS if f"{o}=" in message and hasattr(arguments, o)]
        if spoken:  # the library names arguments of Python
            message += f" (here {', '.join(f'{name}= is --{name}' for name in spoken)})"
        if arguments.json:
            print(json.dumps({"error": type(error).__name__, "message": message}), flush=True)
        print(f"weightinit: {message}", file=sys.stderr)
        return 2
    if result is not None:
        text, values = result
        print(json.dumps(values) if arguments.json else text, flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    from weightinit import __version__

    parser = argparse.ArgumentParser(prog="weightinit", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(run=run)
        return sub

    inspect = command("inspect", model.inspect, "Print the anatomy of a timm model.")
    model.add_arguments(inspect)

    init = command("init", model.init, "Write a checkpoint composed from templates.")
    model.add_init_arguments(init)

    project = command("project", model.project, "Write a checkpoint inherited from one ancestor.")
    model.add_project_arguments(project)

    compare = command("compare", _compare, "Try every start of a timm model on images of yours.")
    model.add_arguments(compare)
    model.add_seed(compare)
    comparison.add_arguments(compare)

    command("templates", _templates, "List the bundles that ship: templates and hypernetworks.")

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
        action=argparse.BooleanOptionalAction,
        help="whether its graphs had nodes for attention's softmax, as those made by torch 1; "
        "default: not, and said to be assumed",
    )
    convert.add_argument("--licence", default="other", help="SPDX identifier of the weights")

    demo = command("demo", _demo, "Start ViTs of six sizes in three ways and compare them.")
    demo.add_argument("-o", "--output", type=Path, default=DEMO, metavar="F.png")
    demo.add_argument("--force", action="store_true", help="replace the file that is there")
    demo.add_argument("--steps", type=int, default=60, help="of each short training")
    return parser


def _compare(arguments: argparse.Namespace) -> tuple[str, Any]:
    return comparison.run(arguments, lambda **sizes: model.create(arguments, **sizes))


def _templates(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.files.locate import names
    from weightinit.hypernet.files import HyperNetwork
    from weightinit.templates.bundle import TemplateBundle, list_templates

    rows, lines = [], []
    for name in list_templates():
        config = TemplateBundle.from_pretrained(name).config
        sizes: dict[str, Any] = {w: config.sizes.get(label) for w, label in SIZES.items()}
        depth, stages = config.depth, config.traits.get("depths", [])
        if len(stages) > 1:
            depth, widths = stages, [config.sizes[f"d{stage}"] for stage in range(len(stages))]
            sizes["embed_dim"] = widths
        row = {"name": name, "kind": config.kind, "method": config.method, "depth": depth, **sizes}
        known = ", ".join(f"{word} {size}" for word, size in sizes.items() if size is not None)
        lines.append(f"{name}: {config.method} templates, depth {depth}, {known}")
        rows.append(row)
    for name in names(HyperNetwork.kind):
        config = HyperNetwork.from_pretrained(name).hyper_config
        largest = config.max_ck if config.rank else max(config.max_shape[:2])
        row = {"name": name, "kind": HyperNetwork.kind, "method": config.kind}
        rows.append(row | {"num_classes": config.num_classes, "largest": largest})
        lines.append(
            f"{name}: {config.kind} hypernetwork, matrices of up to {largest} rows and columns, "
            f"{config.num_classes} classes"
        )
    return "\n".join(lines), rows


def _convert(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.hypernet.convert import convert

    options = ("kind", "key", "max_shape", "num_classes", "softmax", "licence")
    done = convert(
        arguments.old, arguments.folder, **{name: getattr(arguments, name) for name in options}
    )
    return str(done), done.to_dict()


def _demo(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.demo import demo
    from weightinit.files.writing import check_output

    ours = arguments.output == DEMO
    check_output(arguments.output, (".png", ".pdf", ".svg"), force=arguments.force or ours)
    rows = sys.stderr if arguments.json else sys.stdout
    say = partial(print, file=rows, flush=True)
    return demo(arguments.output, steps=arguments.steps, say=say)
