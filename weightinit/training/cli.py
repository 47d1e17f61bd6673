"""The arguments and the work of ``weightinit train-templates`` and ``train-hypernet``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

__all__ = ["add_hypernet_arguments", "add_train_arguments", "run", "run_hypernet"]


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train-templates`` to a parser."""
    parser.add_argument(
        "--preset", required=True, help="digits-w32, cifar10-w64, imagenet-w192, ..."
    )
    parser.add_argument(
        "--data", help="digits, cifar10, a *.safetensors pack or its name, or a folder of images"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="of the bundle")
    parser.add_argument("--method", default="wave", help="wave, tleg or share")
    parser.add_argument("--steps", type=int, help="of the distillation; default: the preset's")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    parser.add_argument("--mixed-precision", help="no, bf16 or fp16; default: the preset's")
    parser.add_argument("--workers", type=int, default=0, help="processes that augment images")
    parser.add_argument("--cache-dir", type=Path, help="of decoded data and ancestors")
    parser.add_argument("--fp16", action="store_true", help="save tensors in half precision")


def run(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]] | None:
    """Train a bundle; return what to print, as text and plain values, in the main process alone."""
    import torch

    from weightinit.training.distill import train_templates
    from weightinit.training.loop import accelerator

    bundle = train_templates(
        arguments.preset,
        arguments.data,
        out=arguments.out,
        method=arguments.method,
        steps=arguments.steps,
        seed=arguments.seed,
        resume=arguments.resume,
        precision=arguments.mixed_precision,
        workers=arguments.workers,
        cache_dir=arguments.cache_dir,
        dtype=torch.float16 if arguments.fp16 else torch.float32,
        command=_command(arguments),
    )
    if not accelerator().is_main_process:
        return None
    found = bundle.config.provenance
    auxiliary = found["auxiliary"]
    lines = [f"{arguments.out}: {len(bundle.tensors)} tensors; accuracy in percent"]
    rows = [
        ("ancestor", "test", found["ancestor"]["test"]),
        ("auxiliary", "test", auxiliary["test"]),
    ]
    rows += [
        ("auxiliary", f"validation, {name}", value) for name, value in auxiliary["val"].items()
    ]
    lines += [f"{who:10} {what:22} {value:6.2f}" for who, what, value in rows]
    text = "\n".join(lines)
    return text, {"out": str(arguments.out), **found}


def add_hypernet_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train-hypernet`` to a parser."""
    parser.add_argument(
        "--preset", required=True, help="micro-pith-rule, micro-logah, paper-tal, ..."
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        help="cifar10, a *.safetensors pack or its name, a folder of images, for GPT-2 a text file "
        "or a folder of them; several are tasks",
    )
    parser.add_argument(
        "--ancestor",
        nargs="+",
        default=[],
        help="timm name, org/name@revision, a safetensors file or folder; PITH learns from several",
    )
    parser.add_argument("--start", metavar="B", help="bundle to go on from: TAL's first stage")
    parser.add_argument(
        "-o", "--out", required=True, type=Path, metavar="DIR", help="of the bundle"
    )
    parser.add_argument("--steps", type=int, help="of the training; default: the preset's")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    parser.add_argument("--mixed-precision", help="no, bf16 or fp16; default: the preset's")
    parser.add_argument("--workers", type=int, default=0, help="processes that augment images")
    parser.add_argument("--cache-dir", type=Path, help="of decoded data and ancestors")


def run_hypernet(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]] | None:
    """Train a hypernetwork; return what to print, in the main process alone."""
    from weightinit.training.hypernet_run import train_hypernet
    from weightinit.training.loop import accelerator

    bundle = train_hypernet(
        arguments.preset,
        arguments.data,
        out=arguments.out,
        ancestor=arguments.ancestor or None,
        start=arguments.start,
        steps=arguments.steps,
        seed=arguments.seed,
        resume=arguments.resume,
        precision=arguments.mixed_precision,
        workers=arguments.workers,
        cache_dir=arguments.cache_dir,
        command=_hypernet_command(arguments),
    )
    if not accelerator().is_main_process:
        return None
    found = bundle.config.provenance
    lines = [
        f"{arguments.out}: {len(bundle.tensors)} tensors; zero-shot validation {found['metric']}"
    ]
    lines += [f"{name:24} {value:6.2f}" for name, value in found["zero_shot"].items()]
    return "\n".join(lines), {"out": str(arguments.out), **found}


def _hypernet_command(arguments: argparse.Namespace) -> str:
    """Return the command that makes the same bundle, without this machine's paths."""
    words = ["weightinit", "train-hypernet", "--preset", arguments.preset]
    if arguments.data:
        words += ["--data", *(Path(data).name for data in arguments.data)]
    if arguments.ancestor:
        paths = {name: Path(name).expanduser() for name in arguments.ancestor}
        words += ["--ancestor", *(p.name if p.exists() else name for name, p in paths.items())]
    if arguments.start:
        words += ["--start", Path(arguments.start).name]
    words += ["-o", arguments.out.name, *_changed(arguments), "--seed", str(arguments.seed)]
    return shlex.join(words)


def _changed(arguments: argparse.Namespace) -> list[str]:
    """Return the options that change a preset's recipe."""
    words = []
    for name in ("steps", "mixed_precision"):
        if getattr(arguments, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    return words


def _command(arguments: argparse.Namespace) -> str:
    """Return the command that makes the same bundle, without this machine's paths."""
    words = ["weightinit", "train-templates", "--preset", arguments.preset]
    if arguments.data:
        words += ["--data", Path(arguments.data).name]
    words += ["--out", arguments.out.name, "--method", arguments.method, *_changed(arguments)]
    words += ["--seed", str(arguments.seed)]
    if arguments.fp16:
        words.append("--fp16")
    return shlex.join(words)
