"""The arguments and the work of ``weightinit train-templates`` and ``train-hypernet``."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from weightinit.training.run import Run

__all__ = ["add_hypernet_arguments", "add_train_arguments", "run", "run_hypernet"]

#: Options of both commands.
SHARED = {option.name: option for option in fields(Run) if option.metadata}


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train-templates`` to a parser."""
    option = parser.add_argument
    option("--preset", required=True, help="digits-w32, digits-weit, cifar10-w64, ...")
    option("--data", help="digits, cifar10, a *.safetensors pack or its name, or image folder")
    option("--method", help="wave, weit, tleg or share; default: the preset's")
    option("--ancestor", metavar="NAME", help="timm name, file or folder of a classifier, or none")
    option("--scalers", help="linear: WAVE's start at Eq. B.1; default: drawn")
    option("--scaler-lr", type=float, help="rate of scalers over that of templates")
    option("--fp16", action="store_true", help="save tensors in half precision")
    _add_shared(parser)


def add_hypernet_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train-hypernet`` to a parser."""
    option = parser.add_argument
    option("--preset", required=True, help="micro-pith-rule, micro-logah, paper-tal, ...")
    option(
        "--data",
        nargs="+",
        default=[],
        help="cifar10, a *.safetensors pack or its name, a folder of images, for GPT-2 a text file "
        "or a folder of them; several are tasks",
    )
    option(
        "--ancestor",
        nargs="+",
        default=[],
        help="timm name, org/name@revision, a safetensors file or folder; PITH learns from several",
    )
    option("--start", metavar="B", help="bundle to go on from: TAL's first stage")
    _add_shared(parser)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    for name, option in SHARED.items():
        how = dict(option.metadata)
        flags = how.pop("flags", (f"--{name.replace('_', '-')}",))
        parser.add_argument(*flags, dest=name, default=option.default, **how)


def run(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]] | None:
    """Train a bundle; return what to print, as text and plain values, in the main process alone."""
    import torch

    from weightinit.training.fleet import accelerator
    from weightinit.training.templates import train_templates

    own = ("method", "ancestor", "scalers", "scaler_lr")
    bundle = train_templates(
        arguments.preset,
        arguments.data,
        method=arguments.method,
        ancestor=arguments.ancestor,
        scalers=arguments.scalers or "drawn",
        scaler_lr=arguments.scaler_lr,
        dtype=torch.float16 if arguments.fp16 else torch.float32,
        command=_command("train-templates", arguments, "preset", "data", "out", *own, "fp16"),
        **{name: getattr(arguments, name) for name in SHARED},
    )
    if not accelerator().is_main_process:
        return None
    found = bundle.config.provenance
    rows = [("ancestor", "test", found["ancestor"]["test"])] if found["ancestor"] else []
    rows += [("auxiliary", "test", found["auxiliary"]["test"])]
    rows += [("auxiliary", f"validation, {k}", v) for k, v in found["auxiliary"]["val"].items()]
    lines = [f"{arguments.out}: {len(bundle.tensors)} tensors; accuracy in percent"]
    lines += [f"{who:10} {what:22} {value:6.2f}" for who, what, value in rows]
    return "\n".join(lines), {"out": str(arguments.out), **found}


def run_hypernet(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]] | None:
    """Train a hypernetwork; return what to print, in the main process alone."""
    from weightinit.training.fleet import accelerator
    from weightinit.training.hypernet_run import train_hypernet

    names = ("preset", "data", "ancestor", "start", "out")
    bundle = train_hypernet(
        arguments.preset,
        arguments.data,
        ancestor=arguments.ancestor or None,
        start=arguments.start,
        command=_command("train-hypernet", arguments, *names),
        **{name: getattr(arguments, name) for name in SHARED},
    )
    if not accelerator().is_main_process:
        return None
    found = bundle.config.provenance
    head = f"{arguments.out}: {len(bundle.tensors)} tensors; zero-shot validation {found['metric']}"
    lines = [f"{name:24} {value:6.2f}" for name, value in found["zero_shot"].items()]
    return "\n".join([head, *lines]), {"out": str(arguments.out), **found}


def _command(verb: str, arguments: argparse.Namespace, *names: str) -> str:
    """Return the command that makes the same bundle, without this machine's paths."""
    words = ["weightinit", verb]
    for name in (*names, "steps", "batch_size", "lr", "ancestor_steps", "precision", "seed"):
        value = getattr(arguments, name)
        values = value if isinstance(value, list) else [value]
        if values in ([], [None], [False]):
            continue
        flag = "mixed-precision" if name == "precision" else name.replace("_", "-")
        words.append(f"--{flag}")
        words += [_bare(one) for one in values if one is not True]
    return shlex.join(words)


def _bare(value: Any) -> str:
    """Return the last part of a path, and anything else as it is."""
    path = Path(str(value)).expanduser()
    return path.name if isinstance(value, Path) or path.exists() else str(value)
