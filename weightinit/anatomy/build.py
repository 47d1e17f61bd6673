"""From names and shapes to an anatomy: match rules, then solve all sizes together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from weightinit.anatomy.core import Anatomy, ParamSpec
from weightinit.anatomy.layout import layout as layout_of
from weightinit.anatomy.match import Match, family_of, match, match_user
from weightinit.anatomy.roles import facts
from weightinit.anatomy.rules import Family, Rule
from weightinit.anatomy.solver import HINT, Group, names, solve_all
from weightinit.anatomy.source import ModelTensors, TensorInfo, read
from weightinit.anatomy.traits import ModuleFacts, Traits, infer, inspect_module
from weightinit.errors import AnatomyError

__all__ = ["anatomy"]


def anatomy(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    *,
    rules: Sequence[Rule] = (),
    sizes: Mapping[str, int] | None = None,
) -> Anatomy:
    """Explain every parameter of a model: its role, and what each of its axes means.

    Args:
        model_or_state_dict: on any device, meta included; wrapped by DDP, torch.compile, FSDP2 or
            not. Head counts and the like are read from a module.
        rules: the caller's rules, which are tried before the built-in ones.
        sizes: known axis sizes that neither shapes nor a module tell: ``{"h": 6}`` for the head
            count of a bare state dict.

    Returns:
        A frozen description; it holds no tensors.

    Raises:
        AnatomyError: if a parameter is not explained, or if shapes contradict one another.

    Examples:
        >>> import timm, torch
        >>> from weightinit.anatomy import anatomy
        >>> with torch.device("meta"):
        ...     seen = anatomy(timm.create_model("vit_tiny_patch16_224"))
        >>> seen.depth, seen.sizes["d"], seen.sizes["h"]
        (12, 192, 3)
        >>> seen.spec("blocks.3.attn.qkv.weight").pattern
        '(3 h k) d'
        >>> seen.blocks[3]["attn.v.weight"].size
        (192, 192)
    """
    source = read(model_or_state_dict)
    family = family_of(entry.key for entry in source.entries)
    entries, matches = _explain(source, family, rules)
    module_facts = ModuleFacts()
    if source.module is not None and family is not None:
        module_facts = inspect_module(source.module, family.library, family.note)
    known = dict(module_facts.sizes)
    for label, size in (sizes or {}).items():
        if known.setdefault(label, size) != size:
            raise AnatomyError(
                f"sizes[{label!r}] = {size}, but the module says {known[label]}: leave it out"
            )
    flags = module_facts.flags | {
        flag: any(re.fullmatch(name, entry.key) for entry in entries)
        for flag, name in (family.flags if family else ())
    }
    groups = solve_all(entries, matches, known, flags)
    return _assemble(family, groups, entries, matches, known, module_facts)


def _explain(
    source: ModelTensors, family: Family | None, rules: Sequence[Rule]
) -> tuple[list[TensorInfo], list[Match]]:
    """Return the parameters and what may hold for each; raise if nothing does."""
    entries, matches, unmatched, integers = [], [], [], []
    buffers = re.compile(family.buffers) if family and source.module is None else None
    for entry in source.entries:
        found = match_user(rules, entry.key) if rules else None
        if found is None and family is not None:
            found = match(family, entry.key)
        if found is None:
            if not (buffers and buffers.fullmatch(entry.key)):
                unmatched.append(entry)
            continue
        entries.append(entry)
        matches.append(found)
        if not entry.floating:
            integers.append(entry)
    if integers:
        raise AnatomyError(
            f"these are no floating-point weights: {names(integers)}. Load the model unquantized"
        )
    if unmatched or not entries:
        library = f"a {family.library} {family.name}" if family else "any model known"
        raise AnatomyError(
            f"{len(unmatched)} of {len(source.entries)} parameters are not those of {library}: "
            f"{names(unmatched)}; {HINT}"
        )
    return entries, matches


def _assemble(
    family: Family | None,
    groups: list[Group],
    entries: list[TensorInfo],
    matches: list[Match],
    sizes: dict[str, int],
    module_facts: ModuleFacts,
) -> Anatomy:
    specs: dict[int, ParamSpec] = {}
    for group in groups:
        rule = group.rules[0]
        layout = layout_of(rule.pattern, group.shape, sizes, len(rule.parts), rule.to)
        for i in group.members:
            entry, found = entries[i], matches[i]
            specs[i] = ParamSpec(
                entry.name,
                entry.key,
                rule.role,
                rule.pattern,
                entry.shape,
                found.block,
                found.stack,
                rule.parts,
                entry.tied,
                layout=layout,
            )
    ordered = tuple(specs[i] for i in range(len(entries)))
    depths, main = _depths(ordered, matches)
    described = {
        **module_facts.traits,
        "main_stacks": main,
        "depths": tuple(depths[s] for s in main),
    }
    if family is not None:
        described = {"form": family.form, **described, "proven": family.proven}
    rows = [spec.shape[-2] for spec in ordered if facts(spec.role).kind == "token"]
    infer(described, sizes, sum(rows))
    return Anatomy(
        ordered,
        sizes,
        sum(depths[stack] for stack in main),
        family.name if family else "custom",
        Traits.of(described),
    )


def _depths(
    specs: Sequence[ParamSpec], matches: Sequence[Match]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return each stack's depth and the main stacks; check that every role is there once."""
    owners: dict[tuple[str, int | None, str], str] = {}
    blocks: dict[str, set[int]] = {}
    main: dict[str, None] = {}
    for spec, found in zip(specs, matches, strict=True):
        for role in spec.parts:
            owner = owners.setdefault((spec.stack, spec.block, role), spec.name)
            if owner != spec.name:
                raise AnatomyError(
                    f"{owner} and {spec.name} are both {role}: tell them apart by "
                    "rules=[Rule(match=r'...', role='...', pattern='...')]"
                )
        if spec.block is not None:
            blocks.setdefault(spec.stack, set()).add(spec.block)
            if found.main:
                main[spec.stack] = None
    for stack, present in blocks.items():
        missing = sorted(set(range(max(present) + 1)) - present)
        if missing:
            raise AnatomyError(
                f"blocks {missing} of {stack!r} have no parameters: pass the whole model"
            )
    return {stack: len(present) for stack, present in blocks.items()}, tuple(main)
