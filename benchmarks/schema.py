"""The form of a benchmark's result file: write it with `record`, read it with `load`.

A file says what was run, on which kind of machine, with which versions and seeds, so that its rows
can be compared and repeated. It holds no host name and no path.
"""

import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "timm", "weightinit")

# What every file holds, and of which type; `validate` checks the rest.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "suite": str,
    "command": str,
    "seeds": list,
    "timestamp": str,
    "commit": (str, type(None)),  # null where the code was not committed
    "versions": dict,
    "machine": dict,
    "device": str,
    "rows": list,
}
MACHINE: dict[str, type | tuple[type, ...]] = {
    "cpu": str,
    "cores": int,
    "threads": int,
    "load": (int, float),  # of the machine, per core, when the run began
    "gpu": (str, type(None)),
}
# An absolute path of any system, or a home folder.
A_PATH = re.compile(r"(^|[\s=\"'])(/[\w.]|~|[A-Za-z]:\\)")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine() or "unknown"


def machine(device: str = "cpu") -> dict[str, Any]:
    """The kind of machine: processors, threads in use, load, and the GPU if `device` is one."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] / cores if hasattr(os, "getloadavg") else 0.0
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "load": round(load, 2),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that change results; null where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    from weightinit import __version__

    return found | {"weightinit": __version__, "torch": str(torch.__version__)}


def commit() -> str | None:
    """The commit of the code, "+" where files differ from it, or None outside of a repository."""
    try:
        text = ["git", "-C", str(ROOT)]
        head = subprocess.check_output([*text, "rev-parse", "HEAD"], stderr=subprocess.DEVNULL)
        changed = subprocess.check_output([*text, "status", "--porcelain", "-uno"])
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.decode().strip() + ("+" if changed.strip() else "")


def command() -> str:
    """The command line as typed at the repository's root, with paths reduced to their names."""
    words = [f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return "python " + shlex.join(re.sub(r"(^|=)[/~]\S*/", r"\1", word) for word in words)


def file_name(result: Mapping[str, Any]) -> str:
    """``<suite>--<machine>--<device>.json``."""
    kind = result["machine"]
    name = kind["gpu"] or f"{kind['cpu']}-{kind['cores']}-cores"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{result['suite']}--{slug}--{result['device']}.json"


def validate(result: Mapping[str, Any]) -> None:
    """Raise a ValueError that lists everything wrong with a result."""
    wrong = _mistyped(result, FIELDS, "") or [
        *_mistyped(result["machine"], MACHINE, "machine."),
        *_wrong_values(result),
        *(f"row {i}: {problem}" for i, row in enumerate(result["rows"]) for problem in _row(row)),
    ]
    if A_PATH.search(" ".join(_texts(result))):
        wrong.append("a text holds a path: keep machines and homes out of result files")
    if wrong:
        raise ValueError("not a benchmark result: " + "; ".join(wrong))


def _mistyped(value: Mapping[str, Any], fields: Mapping[str, Any], prefix: str) -> list[str]:
    missing = [f"{prefix}{name} is missing" for name in fields if name not in value]
    unknown = [f"{prefix}{name} is unknown" for name in value if name not in fields]
    mistyped = [
        f"{prefix}{name} is {value[name]!r}"
        for name, kind in fields.items()
        if name in value and (not isinstance(value[name], kind) or isinstance(value[name], bool))
    ]
    return [*missing, *unknown, *mistyped]


def _wrong_values(result: Mapping[str, Any]) -> list[str]:
    wrong = []
    if result["schema"] != 1:
        wrong.append(f"schema is {result['schema']}, not 1")
    if not result["seeds"] or not all(type(seed) is int for seed in result["seeds"]):
        wrong.append("seeds must be one integer or more")
    if not result["rows"]:
        wrong.append("rows must be one or more")
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", result["timestamp"]):
        wrong.append("timestamp must be UTC to the second")
    if not re.fullmatch(r"[0-9a-f]{40}\+?", result["commit"] or "0" * 40):
        wrong.append("commit must be a git commit or null")
    if set(result["versions"]) != {"python", *PACKAGES}:
        wrong.append(f"versions must name python, {', '.join(PACKAGES)}")
    if result["device"] not in ("cpu", "cuda") or (result["device"] == "cuda") != bool(
        result["machine"].get("gpu")
    ):
        wrong.append("device must be cpu, or cuda and the machine's gpu named")
    return wrong


def _row(row: object) -> list[str]:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        return ["must be an object with a name"]
    cells = {k: v if isinstance(v, list) else [v] for k, v in row.items()}
    return [
        f"{key} is neither a finite number, a text, a truth value, null nor a list of them"
        for key, values in cells.items()
        for value in values
        if not isinstance(value, (int, float, str, type(None)))
        or (isinstance(value, float) and not math.isfinite(value))
    ]


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.items() for item in part for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def record(
    suite: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    seeds: Sequence[int],
    device: str = "cpu",
    load: float | None = None,
    folder: str | Path = RESULTS,
) -> Path:
    """Write the rows of one run, with all that `validate` asks for, and return the file.

    Pass as `load` the ``machine()["load"]`` of the beginning: the run itself raises it.
    """
    kind = machine(device)
    result = {
        "schema": 1,
        "suite": suite,
        "command": command(),
        "seeds": list(seeds),
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "machine": kind if load is None else kind | {"load": load},
        "device": device,
        "rows": [dict(row) for row in rows],
    }
    validate(result)
    path = Path(folder) / file_name(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    part.replace(path)
    return path


def load(path: str | Path) -> dict[str, Any]:
    """Read a result file; a ValueError says what is wrong with one that is not valid."""
    result = json.loads(Path(path).read_text())
    validate(result)
    if Path(path).name != file_name(result):
        raise ValueError(f"{Path(path).name} should be named {file_name(result)}")
    return result
