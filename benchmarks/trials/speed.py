"""The tables of speed and memory."""

from __future__ import annotations

from typing import Any

from trials.tables import origin, results, table


def benchmarks() -> str:
    """Ratios of speed."""
    init, kernels = results("initialise"), results("kernels")
    first = [row for row in init["rows"] if "random" in row]
    steps = [row for row in init["rows"] if "step" in row]
    parts = [
        "`init_from_templates` on a meta model. `random`: timm's own random init takes so many\n"
        "times as long. `load`: it takes so many times as long as copying a checkpoint of the\n"
        "same size into memory that is allocated already. `touch`: as long as allocating the\n"
        "model's memory and filling it with a constant, which for large models is most of it.",
        table(
            ["model", "seconds", "random", "load", "touch"],
            [
                [r["name"].removeprefix("init "), r["templates_seconds"]]
                + [r[key] for key in ("random", "load", "touch")]
                for r in first
            ],
        ),
        "A training step of a constrained model, as a multiple of the plain model's: "
        + "; ".join(f"{r['step']} ({r['name'].removeprefix('training step, ')})" for r in steps)
        + ".",
        origin(init),
        "`kernels.kron_sum` at ViT-B sizes, all four matrices. `kron`, `einsum`, `compile`: the\n"
        "sum of `torch.kron`, one einsum, and `torch.compile` of it take so many times as long.\n"
        "`copy`: it takes so many times as long as moving its bytes once.",
        kernel_table(kernels),
        origin(kernels),
        transforms(),
        fits(),
        predictions(),
    ]
    return "\n\n".join(parts)


def gpu() -> str:
    """The kernels and the hypernetworks on a GPU."""
    kernels = results("kernels", "cuda")
    parts = [kernel_table(kernels), origin(kernels), predictions("cuda")]
    return "\n\n".join(parts)


def transforms() -> str:
    """What it costs to take one checkpoint into another size."""
    result = results("transform")
    rows = result["rows"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    ways = ("shrink", "grow")
    found = {(row["name"], row["direction"]): row for row in rows}
    target = {row["direction"]: row["target_mib"] for row in rows}
    lines = [
        [name]
        + [
            found[name, way][key] if (name, way) in found else ""
            for way in ways
            for key in ("seconds", "times_project_from", "peak_mib")
        ]
        for name in names
    ]
    header = [f"{way}: {what}" for way in ways for what in ("seconds", "times", "peak MiB")]
    return (
        "`project_from(..., calibration='none')` on a checkpoint of ViT-L's size: into a ViT-B-"
        f"like\ntarget (704 wide, 11 blocks, {target['shrink']} MiB), and from that one back "
        f"({target['grow']} MiB).\n"
        "`times`: as multiples of `project_from`. The peak is how far a process rises above\n"
        "its imports.\n\n"
        f"{table(['', *header], lines)}\n\n{origin(result)}"
    )


def fits() -> str:
    """What a calibrated fit costs."""
    result = results("transform-fit")
    keys = ("images", "cpu_seconds", "times_forward", "peak_mib", "times_models")
    header = ["", "images", "CPU seconds", "times the forward", "peak MiB", "times both models"]
    lines = [[row["name"], *(row[key] for key in keys)] for row in result["rows"]]
    return (
        "`project_from(..., calibration=batches)` into half the width and half the blocks, images\n"
        "of 98 pixels, patches of 14: CPU seconds beside those of the ancestor's forward over the\n"
        "same images, and how far memory rises beside what both models take.\n\n"
        f"{table(header, lines)}\n\n{origin(result)}"
    )


def predictions(device: str = "cpu") -> str:
    """Hypernetworks beside a plain reimplementation of the published decoding."""
    result = results("hypernet", device)
    lines = [
        [
            row["name"],
            f"{row['ours_seconds']:.3g}",
            row["times_faster"],
            row.get("ours_peak_mib", ""),
            row.get("times_less_memory", ""),
        ]
        for row in result["rows"]
    ]
    header = ["", "seconds", "times faster", "peak MiB", "times less memory"]
    return (
        "Hypernetworks at the published sizes, against a plain reimplementation of the published\n"
        "code: graph, all weights of a model, and a training step on four images (PITH: with an\n"
        f"ancestor of ViT-L's size).\n\n{table(header, lines)}\n\n{origin(result)}"
    )


def kernel_table(result: dict[str, Any]) -> str:
    """The rows that sum up all kinds of matrices."""
    keys = ["ratio", "layers", "kron", "einsum", "compile", "copy"]
    rows = [row for row in result["rows"] if row["kind"] == "all"]
    return table(
        ["pass", "width / w", "blocks", *keys[2:]],
        [[row["name"], *(row[key] for key in keys)] for row in rows],
    )
