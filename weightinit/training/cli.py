"""The arguments and the work of ``weightinit train-templates``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

__all__ = ["add_train_arguments", "run"]


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


def _command(arguments: argparse.Namespace) -> str:
    """Return the command that makes the same bundle, without this machine's paths."""
    words = ["weightinit", "train-templates", "--preset", arguments.preset]
    if arguments.data:
        words += ["--data", Path(arguments.data).name]
    words += ["--out", arguments.out.name, "--method", arguments.method]
    for name in ("steps", "mixed_precision"):
        if getattr(arguments, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    words += ["--seed", str(arguments.seed)]
    if arguments.fp16:
        words.append("--fp16")
    return shlex.join(words)
