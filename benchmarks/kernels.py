"""`kernels.kron_sum` at ViT-B sizes against what a user would write, and against a copy.

    python benchmarks/kernels.py                  # CPU, about two minutes
    python benchmarks/kernels.py --device cuda

Each case composes one weight of one block, or of all twelve blocks, from templates of width
768 / r. Every round times everything once, one after the other, and a column is the median over
the rounds, so that other work on the machine falls on all alike. Columns:

    kron, einsum, compile   time of a loop of torch.kron, of one einsum, and of torch.compile of
                            that einsum, as a multiple of kron_sum's: above 1, kron_sum is faster
    copy                    kron_sum's time as a multiple of moving its bytes once (forward:
                            templates read, output written; backward: output gradient and
                            templates read, template gradient written) at the rate of a large copy_

``new`` returns new memory, as the others do. ``into`` writes into a tensor for each block that
exists already, as an initialisation does, and is still compared with the others in new memory.
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


def compiled_einsum() -> Callable[[Tensor, Tensor], Tensor]:
    """The same, compiled afresh."""
    torch.compiler.reset()
    return torch.compile(einsum, dynamic=False)


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


def rows_of(
    kind: str, ratio: int, layers: int, rounds: int, device: str
) -> Iterator[dict[str, Any]]:
    """One row for the forward into new memory, into old, and for the backward."""
    number, rows, columns = KINDS[kind]
    w, s = WIDTH // ratio, (rows * ratio, columns * ratio)
    generator = torch.Generator().manual_seed(SEED)
    inputs = (
        torch.randn(number, w, w, generator=generator).to(device),
        torch.randn(layers, number, *s, generator=generator).to(device),
    )
    outs = list(torch.empty(layers, s[0] * w, s[1] * w, device=device))
    source = torch.ones(COPY_ELEMENTS[device], device=device)
    target = torch.empty_like(source)
    others = {"kron": kron, "einsum": einsum, "compile": compiled_einsum()}
    copy = {"copy": lambda: target.copy_(source)}

    forward = medians(
        {name: lambda f=f: f(*inputs) for name, f in others.items()}
        | {"new": lambda: kron_sum(*inputs), "into": lambda: kron_sum(*inputs, out=outs)}
        | copy,
        rounds,
        device,
    )
    leaves = [tensor.requires_grad_() for tensor in inputs]
    weights = {name: f(*leaves) for name, f in (others | {"new": kron_sum}).items()}
    grad = torch.randn_like(weights["new"])

    def differentiate(weight: Tensor) -> Any:
        return torch.autograd.grad(weight, leaves, grad, retain_graph=True)

    backward = medians(
        {name: lambda x=x: differentiate(x) for name, x in weights.items()} | copy, rounds, device
    )
    case = {"kind": kind, "ratio": ratio, "layers": layers}
    case |= {"templates": [number, w, w], "scalers": [layers, number, *s]}
    size, total = inputs[0].numel(), sum(out.numel() for out in outs)
    for name, times, key, elements in (
        ("forward new", forward, "new", size + total),
        ("forward into", forward, "into", size + total),
        ("backward", backward, "new", 2 * size + total),
    ):
        floor = times["copy"] * elements / (2 * source.numel())
        yield {"name": name, **case, **compare(times, key, floor)}


def compare(times: Timings, key: str, floor: float) -> dict[str, float]:
    """The ratios of the module's docstring, and the times that they come from."""
    ratios = {name: times[name] / times[key] for name in ("kron", "einsum", "compile")}
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
    print(
        f"{row['name']:13} {row['kind']:5} {row['ratio']:5} {row['layers']:6} {row['ms']:9.2f}"
        f" {row['kron']:7.1f}x {row['einsum']:7.1f}x {row['compile']:7.1f}x {row['copy']:7.2f}",
        flush=True,
    )


def keep_freed_memory() -> None:
    """Have malloc reuse what it was given back: no mmap for large blocks, no trimming."""
    mmap_max, trim_threshold = -4, -1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description="kron_sum against torch.kron, einsum and a copy")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", default=schema.RESULTS, help="folder of the result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    load = schema.machine()["load"]
    print("pass          kind  ratio blocks        ms     kron   einsum  compile    copy")
    rows: list[dict[str, Any]] = []
    for ratio, blocks in RATIOS.items():
        for layers in blocks:
            for kind in KINDS:
                for row in rows_of(kind, ratio, layers, options.rounds, options.device):
                    rows.append(row)
                    show(row)
    totals = summary(rows)
    for row in totals:
        show(row)
    path = schema.record(
        "kernels", rows + totals, seeds=[SEED], device=options.device, load=load, folder=options.out
    )
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
