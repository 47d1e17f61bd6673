"""An anatomy as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightinit.text import first, spans

if TYPE_CHECKING:
    from weightinit.anatomy.core import Anatomy

__all__ = ["table"]


def table(anatomy: Anatomy) -> str:
    """Return one line a role, pattern and shape, with the range of blocks that share it."""
    rows: dict[tuple[str, str, str, tuple[int, ...], tuple[str, ...]], list[int]] = {}
    for spec in anatomy.specs:
        key = (spec.stack, spec.role, spec.pattern, spec.shape, spec.tied)
        rows.setdefault(key, []).extend([] if spec.block is None else [spec.block])
    lines = [("where", "role", "axes", "shape")]
    for (stack, role, pattern, shape, tied), blocks in rows.items():
        where = f"{stack} {spans(blocks)}" if stack else ""
        known = " x ".join(map(str, shape)) or "scalar"
        lines.append((where, role, pattern, known + "".join(f", tied to {t}" for t in tied)))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    body = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    body.insert(1, "  ".join("-" * width for width in widths))
    library = anatomy.traits.library
    head = f"{anatomy.family}{f' of {library}' if library else ''}, {anatomy.depth} blocks"
    sizes = "  ".join(f"{label}={size}" for label, size in sorted(anatomy.sizes.items()))
    hidden = ("library", "main_stacks", "depths")
    traits = "  ".join(
        f"{name}={tuple(value) if isinstance(value, list) else value}"
        for name, value in anatomy.traits.to_dict().items()
        if name not in hidden and value not in (False, "none")
    )
    spare = [spec.name for spec in anatomy.unexplained]
    tail = ["", f"no rule explains {first(spare)}"] if spare else []
    return "\n".join([head, sizes, traits, "", *body, *tail])
