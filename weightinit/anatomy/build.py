"""From names and shapes to an anatomy: match rules, then solve all sizes together."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal

from torch import Tensor, nn

from weightinit.anatomy.core import Anatomy
from weightinit.anatomy.kept import entries_of, kept_by
from weightinit.anatomy.layout import layout as layout_of
from weightinit.anatomy.match import Match, block_of, families_of, match, match_user, prefix_of
from weightinit.anatomy.parameter import ParamSpec
from weightinit.anatomy.pattern import parse
from weightinit.anatomy.roles import facts
from weightinit.anatomy.rules import Family, Rule
from weightinit.anatomy.solver import HINT, Group, names, solve_all
from weightinit.anatomy.source import TensorInfo, read, refuse, shorten, unwrap
from weightinit.anatomy.traits import ModuleFacts, Traits, heads_of, infer, inspect_module
from weightinit.errors import AnatomyError
from weightinit.text import first

__all__ = ["anatomy"]


def anatomy(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    *,
    rules: Sequence[Rule] = (),
    sizes: Mapping[str, int] | None = None,
    keep: Iterable[str] = (),
    unexplained: Literal["raise", "outside", "keep"] = "raise",
) -> Anatomy:
    """Explain every parameter of a model: its role, and what each of its axes means.

    Args:
        model_or_state_dict: model or state dict on any device, meta included. A model may be
            wrapped by DDP, torch.compile or FSDP2, or stand inside another module; head counts and
            the like are read from it.
        rules: the caller's rules, which are tried before the built-in ones.
        sizes: known axis sizes that neither shapes nor a module tell: ``{"h": 6}`` for the head
            count of a bare state dict.
        keep: parameters that a method is to leave as they are, by name, by the start of one, or by
            role: :attr:`Anatomy.kept`. What is named needs no explanation.
        unexplained: ``"raise"`` on any other parameter that no rule explains, or ``"keep"`` it in
            :attr:`Anatomy.unexplained`, or do so ``"outside"`` the blocks alone.

    Returns:
        A frozen description; it holds no tensors.

    Raises:
        AnatomyError: if a parameter is not explained, or if shapes contradict one another.
        ProjectionError: if an entry of ``keep`` names no parameter.

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
    if unexplained not in (allowed := ("raise", "outside", "keep")):
        raise AnatomyError(f"unexplained={unexplained!r}: use one of {allowed}")
    keep = entries_of(keep)
    source = read(model_or_state_dict, lenient=bool(keep) or unexplained != "raise")
    kept = {entry.name for entry in source if _named(entry, keep)}
    families = families_of(entry.key for entry in source if entry.name not in kept)
    families = families or families_of(entry.key for entry in source)
    prefix = prefix_of(families)
    family = families.get(prefix)
    entries, matches, spare = _explain(source, kept, families, prefix, rules, unexplained)
    noted = ModuleFacts()
    if isinstance(model_or_state_dict, nn.Module):
        module = unwrap(model_or_state_dict, prefix)
        if family is not None:
            noted = inspect_module(module, family.library, family.note)
        elif "h" in _labels(matches):
            noted.sizes.update(heads_of(module))
    known = dict(noted.sizes)
    stated = [("sizes=", x, size) for x, size in (sizes or {}).items()]
    stated += [(f"the rule for {m.rules[0].role}", *size) for m in matches for size in m.sizes]
    for where, label, size in stated:
        if known.setdefault(label, size) != size:
            raise AnatomyError(
                f"{where} says {label} = {size}, but the module says {known[label]}: leave it out"
            )
    if "hp" in _labels(matches) and "h" in known:
        known.setdefault("hp", known["h"])  # no pool is known that has others than its blocks
    flags = noted.flags | {
        flag: any(re.fullmatch(name, entry.key) for entry in entries)
        for flag, name in (family.flags if family else ())
    }
    solved = dict(known)
    try:
        groups = solve_all(entries, matches, solved, flags)
    except AnatomyError:
        # What is kept may be of another shape than the rules say: it is left unexplained.
        pairs = [(x, m) for x, m in zip(entries, matches, strict=True) if x.name not in kept]
        if not pairs or len(pairs) == len(entries):
            raise
        spare += [(x, m.block) for x, m in zip(entries, matches, strict=True) if x.name in kept]
        entries, matches = [x for x, _ in pairs], [m for _, m in pairs]
        groups = solve_all(entries, matches, solved := dict(known), flags)
    known = solved
    specs = _specs(groups, entries, matches, known)
    depths, main = _depths(specs, matches)
    traits = {**noted.traits, "main_stacks": main, "depths": tuple(depths[s] for s in main)}
    if family is not None:
        traits = {"form": family.form, **traits, "proven": family.proven}
    tokens = [
        x.shape[-2] if len(x.shape) > 1 else 1 for x in specs if facts(x.role).kind == "token"
    ]
    infer(traits, known, sum(tokens))
    bare = tuple(ParamSpec.bare(x.name, x.key, x.shape, block, x.tied) for x, block in spare)
    return Anatomy(
        specs,
        known,
        sum(depths[stack] for stack in main),
        family.name if family else "custom",
        Traits.of(traits),
        prefix,
        bare,
        kept_by(keep, specs, bare),
    )


def _named(entry: TensorInfo, names: Sequence[str]) -> bool:
    """Return whether a parameter is called by one of some names, or begins with it."""
    own = (entry.name, entry.key)
    return any(x == name or x.startswith(f"{name}.") for x in own for name in names)


def _labels(matches: Iterable[Match]) -> set[str]:
    patterns = {rule.pattern for matched in matches for rule in matched.rules}
    return {label for pattern in patterns for label in parse(pattern).labels}


def _fits(matched: Match, entry: TensorInfo) -> bool:
    """Return whether one of the rules has the tensor's axes, those of length 1 included."""
    patterns = [parse(rule.pattern).axes for rule in matched.rules]
    return any(
        len(axes) == len(entry.shape)
        and all(axis != (("1",),) or n == 1 for axis, n in zip(axes, entry.shape, strict=True))
        for axes in patterns
    )


def _explain(
    source: Sequence[TensorInfo],
    kept: Collection[str],
    families: Mapping[str, Family],
    prefix: str,
    rules: Sequence[Rule],
    unexplained: str,
) -> tuple[list[TensorInfo], list[Match], list[tuple[TensorInfo, int | None]]]:
    """Return the parameters, what may hold for each, and what needs no explanation.

    The last come with the number of their block, if they are in one.
    """
    family = families.get(prefix)
    found: dict[int, tuple[TensorInfo, Match]] = {}
    spare, unmatched, faults, taken = [], [], [], set()
    # What stands outside the prefix may be the model's head, and may be another model.
    for i, entry in sorted(enumerate(source), key=lambda x: not x[1].key.startswith(prefix)):
        key, inside = shorten(entry.key, prefix), entry.key.startswith(prefix)
        matched = match_user(rules, (key, entry.key), entry.shape)
        if matched is None and family is not None:
            matched = match(family, key)
            if matched is not None and not inside:
                role = (matched.block, matched.rules[0].role)
                matched = None if matched.block is not None or role in taken else matched
        block = matched.block if matched else block_of(family, key) if family else None
        free = entry.name in kept or unexplained == "keep"
        free |= unexplained == "outside" and family is not None and block is None
        if free and (matched is None or entry.fault or not _fits(matched, entry)):
            if not (family and re.fullmatch(family.buffers, key)):
                spare.append((replace(entry, key=key), block))
        elif entry.fault:
            faults.append(f"{entry.name} ({entry.fault})")
        elif matched is not None:
            found[i] = entry if key == entry.key else replace(entry, key=key), matched
            taken.add((matched.block, matched.rules[0].role))
        elif not (family and re.fullmatch(family.buffers, key)):
            unmatched.append(entry)
    refuse(faults)
    ordered = [found[i] for i in sorted(found)]
    entries, matches = [entry for entry, _ in ordered], [matched for _, matched in ordered]
    integers = [entry for entry in entries if not entry.floating]
    if integers:
        raise AnatomyError(
            f"these are no floating-point weights: {names(integers)}. Load the model unquantized"
        )
    if unmatched or not found:
        unmatched = unmatched or list(source)
        library = f"a {family.library} {family.name}" if family else "any model known"
        adapters = ". Merge adapters first (model.merge_and_unload()), or wrap the filled model"
        lora = any("lora_" in entry.name for entry in unmatched)
        raise AnatomyError(
            f"{len(unmatched)} of {len(source)} parameters are not those of {library}: "
            f"{names(unmatched)}; keep them as they are by unexplained='keep' or keep=[names], "
            f"{_advice(unmatched, families, rules)}{adapters if lora else ''}"
        )
    return entries, matches, spare


def _advice(
    unmatched: Sequence[TensorInfo], families: Mapping[str, Family], rules: Sequence[Rule]
) -> str:
    """Return what to do about parameters that nothing explains."""
    for rule in rules:
        misfit = next((x for x in unmatched if re.fullmatch(rule.match, x.key)), None)
        if misfit is not None:
            return (
                f"rules= has {rule.pattern!r} for {first([misfit.name])}, whose shape is "
                f"{misfit.shape}: write one label or number for each axis"
            )
    parts = [p for p in families if p]
    known = [f"{p[:-1]!r} is a {families[p].library} {families[p].name}" for p in parts]
    return f"{first(known)}: pass that submodule, or {HINT}" if known else HINT


def _specs(
    groups: Sequence[Group],
    entries: Sequence[TensorInfo],
    matches: Sequence[Match],
    sizes: Mapping[str, int],
) -> tuple[ParamSpec, ...]:
    specs: dict[int, ParamSpec] = {}
    for group in groups:
        rule = group.rules[0]
        layout = layout_of(rule.pattern, group.shape, sizes, len(rule.parts), rule.to)
        for i in group.members:
            entry, matched = entries[i], matches[i]
            specs[i] = ParamSpec(
                entry.name,
                entry.key,
                rule.role,
                rule.pattern,
                entry.shape,
                matched.block,
                matched.stack,
                rule.parts,
                entry.tied,
                layout=layout,
            )
    return tuple(specs[i] for i in range(len(entries)))


def _depths(
    specs: Sequence[ParamSpec], matches: Sequence[Match]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return each stack's depth and the main stacks; check that every role is there once."""
    owners: dict[tuple[str, int | None, str], str] = {}
    blocks: dict[str, set[int]] = {}
    main: dict[str, None] = {}
    for spec, matched in zip(specs, matches, strict=True):
        for role in spec.parts:
            owner = owners.setdefault((spec.stack, spec.block, role), spec.name)
            if owner != spec.name:
                raise AnatomyError(
                    f"{first([owner])} and {first([spec.name])} are both {role}: tell them apart "
                    "by rules=[Rule(match=r'...', role='...', pattern='...')], or pass one model "
                    "at a time"
                )
        if spec.block is not None:
            blocks.setdefault(spec.stack, set()).add(spec.block)
            if matched.main:
                main[spec.stack] = None
    for stack, present in blocks.items():
        if max(present) >= len(present):
            missing = islice((i for i in range(max(present)) if i not in present), 8)
            raise AnatomyError(
                f"blocks {list(missing)} of {stack!r} have no parameters, and block "
                f"{max(present)} has: pass the whole model"
            )
    return {stack: len(present) for stack, present in blocks.items()}, tuple(main)
