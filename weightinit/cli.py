"""The ``weightinit`` command: inspect a model, fill one, list and train bundles, run the demo."""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

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

    inspect = command("inspect", _inspect, "Print the anatomy of a timm model.")
    _add_model(inspect)

    init = command("init", _init, "Write a checkpoint composed from templates.")
    _add_model(init)
    init.add_argument("--templates", metavar="B", help="built-in name, folder or org/name@revision")
    init.add_argument(
        "--scalers", help="nested, interpolate, linear or fitted; default: the templates' own"
    )
    _add_checkpoint(init)

    project = command("project", _project, "Write a checkpoint inherited from one ancestor.")
    project.add_argument(
        "ancestor", help="timm name, org/name@revision, a safetensors file or folder"
    )
    _add_model(project)
    project.add_argument("--method", default="auto", help="by name; default: what the pair needs")
    project.add_argument(
        "--calibration",
        metavar="DIR",
        help="folder of images like those you will use, without labels, 'generated' or 'none'; "
        "default: generated ones for a narrower model",
    )
    project.add_argument(
        "--heads",
        type=int,
        metavar="N",
        help="attention heads of an ancestor whose file lacks them",
    )
    project.add_argument(
        "--grid", type=int, nargs=2, metavar=("H", "W"), help="its patches, likewise"
    )
    _add_checkpoint(project)

    compare = command("compare", _compare, "Try every start of a timm model on images of yours.")
    _add_model(compare)
    _add_seed(compare)
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


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="timm model, e.g. vit_small_patch16_224")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of timm.create_model, e.g. depth=9 embed_dim=320 num_heads=5",
    )


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that write a model."""
    _add_seed(parser)
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


def _add_seed(parser: argparse.ArgumentParser) -> None:
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


def _create(arguments: argparse.Namespace, **defaults: Any) -> Any:
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


def _inspect(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.anatomy import anatomy

    found = anatomy(_create(arguments))
    return str(found), found.to_dict()


def _init(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.api import plan_templates

    _check_checkpoint(arguments)
    plan = plan_templates(
        _create(arguments),
        arguments.templates,
        scalers=arguments.scalers,
        generator=_generator(arguments.seed),
        keep=arguments.keep,
    )
    return _write(arguments, plan)


def _project(arguments: argparse.Namespace) -> tuple[str, Any]:
    from weightinit.ancestor.ancestor import Ancestor
    from weightinit.api import plan_projection
    from weightinit.image_folder import image_batches
    from weightinit.inherit.generated import WORDS

    _check_checkpoint(arguments)
    known: dict[str, Any] = {"heads": arguments.heads}
    if arguments.grid is not None:
        known["grid"] = tuple(arguments.grid)
    model, ancestor = _create(arguments), Ancestor.open(arguments.ancestor, **known)
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


def _compare(arguments: argparse.Namespace) -> tuple[str, Any]:
    return comparison.run(arguments, lambda **sizes: _create(arguments, **sizes))


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
