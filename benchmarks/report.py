"""Fill the README's tables from the committed result files and the shipped bundles.

python benchmarks/report.py                   # or: make bench-report
"""

import re
from collections.abc import Sequence
from typing import Any

import schema

from weightinit import TemplateBundle, list_templates

README = schema.ROOT / "README.md"


def results(suite: str) -> dict[str, Any]:
    """The newest result file of a suite."""
    files = [schema.load(path) for path in schema.RESULTS.glob(f"{suite}--*.json")]
    return max(files, key=lambda result: result["timestamp"])


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def origin(result: dict[str, Any]) -> str:
    """Where the numbers of a table come from."""
    kind, versions = result["machine"], result["versions"]
    return (
        f"`{result['command']}`; seeds {', '.join(map(str, result['seeds']))}; {kind['threads']} "
        f"threads of {kind['gpu'] or kind['cpu']}, load {kind['load']} a core; "
        f"torch {versions['torch']}, timm {versions['timm']}."
    )


def demo() -> str:
    """Accuracies of the demo."""
    result = results("demo")
    steps = result["rows"][0]["steps"]
    header = [
        "target", "width x depth, heads", "random: at once", f"{steps} steps",
        "templates: at once", f"{steps} steps",
    ]  # fmt: skip
    rows = [
        [
            row["name"],
            f"{row['embed_dim']} x {row['depth']}, {row['num_heads']}",
            row["random_at_once"],
            row["random_trained"],
            row["templates_at_once"],
            row["templates_trained"],
        ]
        for row in result["rows"]
    ]
    spread = max(row["spread"] for row in result["rows"])
    return (
        "Accuracy in percent on 360 held-out handwritten digits; every target is filled from the\n"
        "one bundle `digits-w32` (32 wide, 6 deep, 2 heads), beside the same model as timm\n"
        f"initialises it, at once and after {steps} steps of 64 images, at the learning rate that\n"
        f"serves random best. Means; the trained columns vary by up to {spread} points over the\n"
        "seeds.\n\n"
        f"{table(header, rows)}\n\n{origin(result)}"
    )


def bundles() -> str:
    """What ships in the package, from each bundle's provenance."""
    header = ["bundle", "auxiliary model", "its accuracy, val / test", "ancestor's", "size"]
    rows = []
    for name in list_templates():
        bundle = TemplateBundle.from_pretrained(name)
        sizes, found = bundle.config.sizes, bundle.config.provenance
        auxiliary, ancestor = found["auxiliary"], found["ancestor"]
        kib = sum(tensor.nbytes for tensor in bundle.tensors.values()) / 1024
        rows.append(
            [
                f"`{name}`",
                f"{bundle.config.depth} blocks of {sizes['d']}, {sizes['h']} heads, "
                f"patch {sizes['p']}",
                f"{auxiliary['val']['avg']} / {auxiliary['test']}",
                f"{ancestor['val']} / {ancestor['test']}",
                f"{kib:.0f} KiB",
            ]
        )
    return (
        f"Shipped in the package (accuracies in percent, recorded by the training):\n\n"
        f"{table(header, rows)}"
    )


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
    ]
    return "\n\n".join(parts)


def kernel_table(result: dict[str, Any]) -> str:
    """The rows that sum up all kinds of matrices."""
    keys = ["ratio", "layers", "kron", "einsum", "compile", "copy"]
    rows = [row for row in result["rows"] if row["kind"] == "all"]
    return table(
        ["pass", "width / w", "blocks", *keys[2:]],
        [[row["name"], *(row[key] for key in keys)] for row in rows],
    )


def filled(text: str) -> str:
    """The README with every generated part made anew."""
    for make in (demo, bundles, benchmarks):
        name = make.__name__
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        found = re.search(pattern, text, re.DOTALL)
        assert found, f"the README has no <!-- {name} --> part"
        text = text[: found.end(1)] + make() + "\n" + text[found.start(2) :]
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
