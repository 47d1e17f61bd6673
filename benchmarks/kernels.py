"""`kron_sum` at ViT-B sizes against what a user would write, and against a copy.

    python benchmarks/kernels.py                  # CPU, about two minutes
    python benchmarks/kernels.py --device cuda

Every round times everything once, one after the other, and a column is the median over the rounds,
so that other work on the machine falls on all alike. Columns: the time of each of these as a
multiple of the kernel's, above 1 where the kernel is faster,

    kron      a loop of torch.kron
    einsum    one einsum
    compile   torch.compile of that einsum
    copy      not so: the kernel's time as a multiple of moving its bytes once, at the rate of a
              large copy_ (forward: inputs read, output written; backward: output gradient and
              inputs read, gradients written; the small scalers are left out)

Each case composes one weight of one block, or of all twelve blocks, from templates of
width 768 / r. ``new`` returns new memory, as the others do. ``into`` writes into a tensor for each
block that exists already, as an initialisation does, and is still compared with the others in new
memory. On a GPU a call is timed as a user makes it: the processor's time for a launch counts.

Freed memory is kept (on glibc), since otherwise the system's clearing of fresh pages, which costs
several times the composition, falls on whichever call the allocator leaves it to.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import schema
import torch
from torch import Tensor

from weightinit.kernels import kron_sum

WIDTH, DEPTH = 768, 12
# N and the shape of the weight in units of the width: Table C.2 of WAVE.
KINDS = {"qkv": (6, 3, 1), "proj": (2, 1, 1), "fc1": (8, 4, 1), "fc2": (8, 1, 4)}
RATIOS = {1: (1, DEPTH), 2: (DEPTH,)}  # width ratio: numbers of blocks
COPY_ELEMENTS = {"cpu": 1 << 26, "cuda": 1 << 28}
OTHERS = ("kron", "einsum", "compile")
SEED = 0
Timings = dict[str, float]


def kron(templates: Tensor, scalers: Tensor) -> Tensor:
    """The formula as written, a block at a time."""
    return torch.stack(
        [sum(map(torch.kron, layer, templates), torch.zeros(())) for layer in scalers]
    )


def einsum(templates: Tensor, scalers: Tensor) -> Tensor:
    """The formula as one contraction."""
    (layers, _, s1, s2), (_, w1, w2) = scalers.shape, templates.shape
    product = torch.einsum("lnab,nij->laibj", scalers, templates)
    return product.reshape(layers, s1 * w1, s2 * w2)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, compiled afresh."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


class Copy:
    """The rate at which a large copy moves elements."""

    def __init__(self, device: str):
        self.source = torch.ones(COPY_ELEMENTS[device], device=device)
        self.target = torch.empty_like(self.source)

    def __call__(self) -> None:
        """Copy once."""
        self.target.copy_(self.source)

    def floor(self, times: Timings, elements: int) -> float:
        """Seconds that so many elements take to be read or written."""
        return times["copy"] * elements / (2 * self.source.numel())


def medians(calls: dict[str, Callable[[], Any]], rounds: int, device: str) -> Timings:
    """Seconds of each call: medians over rounds that run every call once, after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def race(
    calls: dict[str, Callable[..., Any]],
    inputs: Sequence[Tensor],
    rounds: int,
    copy: Copy,
    into: Callable[[], Any] | None = None,
) -> tuple[Timings, Timings]:
    """Seconds of each call forward, with `into` beside them, and backward."""
    device = inputs[0].device.type
    runs = {name: lambda f=f: f(*inputs) for name, f in calls.items()}
    runs |= {"into": into} if into else {}
    forward = medians(runs | {"copy": copy}, rounds, device)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    weights = {name: f(*leaves) for name, f in calls.items()}
    grad = torch.randn_like(weights["new"])

    def differentiate(weight: Tensor) -> Any:
        return torch.autograd.grad(weight, leaves, grad, retain_graph=True)

    runs = {name: lambda x=x: differentiate(x) for name, x in weights.items()}
    return forward, medians(runs | {"copy": copy}, rounds, device)


def composed(
    kind: str, ratio: int, layers: int, rounds: int, device: str
) -> Iterator[dict[str, Any]]:
    """One row for kron_sum's forward into new memory, into old, and for the backward."""
    number, rows, columns = KINDS[kind]
    w, s = WIDTH // ratio, (rows * ratio, columns * ratio)
    generator = torch.Generator().manual_seed(SEED)
    inputs = (
        torch.randn(number, w, w, generator=generator).to(device),
        torch.randn(layers, number, *s, generator=generator).to(device),
    )
    out = torch.empty(layers, s[0] * w, s[1] * w, device=device)
    copy = Copy(device)
    calls = {"kron": kron, "einsum": einsum, "compile": compiled(einsum), "new": kron_sum}
    forward, backward = race(calls, inputs, rounds, copy, lambda: kron_sum(*inputs, out=out))
    case = {"kind": kind, "ratio": ratio, "layers": layers}
    case |= {"templates": [number, w, w], "scalers": [layers, number, *s]}
    size, total = inputs[0].numel(), out.numel()
    for name, times, key, elements in (
        ("forward new", forward, "new", size + total),
        ("forward into", forward, "into", size + total),
        ("backward", backward, "new", 2 * size + total),
    ):
        yield {"name": name, **case, **compare(times, key, copy.floor(times, elements))}


def compare(times: Timings, key: str, floor: float) -> dict[str, float]:
    """The ratios of the module's docstring, and the times that they come from."""
    ratios = {name: times[name] / times[key] for name in OTHERS if name in times}
    ratios["copy"] = times[key] / floor
    seconds = {"ms": 1e3 * times[key], "floor_ms": 1e3 * floor}
    return {k: round(v, 3) for k, v in (ratios | seconds).items()}


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each group: all kinds of one ratio, number of blocks and direction together."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["ratio"], row["layers"]), []).append(row)
    totals = []
    for (name, ratio, layers), group in groups.items():
        ours = sum(row["ms"] for row in group)
        floor = sum(row["floor_ms"] for row in group)
        total = {
            k: sum(r[k] * r["ms"] for r in group) / ours for k in ("kron", "einsum", "compile")
        }
        total |= {"copy": ours / floor, "ms": ours, "floor_ms": floor}
        case = {"name": name, "kind": "all", "ratio": ratio, "layers": layers}
        totals.append(case | {k: round(v, 3) for k, v in total.items()})
    return totals


def show(row: dict[str, Any]) -> None:
    """Print one line of the table."""
    others = " ".join(f"{name} {row[name]:6.1f}x" for name in OTHERS if name in row)
    print(
        f"{row['name']:22} {row['kind']:4} ratio {row['ratio']} x{row['layers']:<2} "
        f"{row['ms']:9.2f} ms  {others}  copy {row['copy']:6.2f}",
        flush=True,
    )


def keep_freed_memory() -> None:
    """Have malloc reuse what it was given back: no mmap for large blocks, no trimming."""
    mmap_max, trim_threshold = -4, -1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def measured(rounds: int, device: str) -> Iterator[dict[str, Any]]:
    """Every row, as soon as it is there."""
    rows = []
    for ratio, blocks in RATIOS.items():
        for layers in blocks:
            for kind in KINDS:
                for row in composed(kind, ratio, layers, rounds, device):
                    rows.append(row)
                    yield row
    yield from summary(rows)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description="kernels against plain PyTorch and a copy")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", default=schema.RESULTS, help="folder of the result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    load = schema.machine()["load"]
    rows = []
    for row in measured(options.rounds, options.device):
        rows.append(row)
        show(row)
    path = schema.record(
        "kernels", rows, seeds=[SEED], device=options.device, load=load, folder=options.out
    )
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
