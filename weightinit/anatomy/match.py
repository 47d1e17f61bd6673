"""Which family names are of, and which rules may hold for each of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from weightinit.anatomy.pattern import parse, solve
from weightinit.anatomy.roles import facts
from weightinit.anatomy.rules import FAMILIES, Family, Rule, Stack
from weightinit.errors import AnatomyError
from weightinit.text import first

__all__ = ["Match", "block_of", "families_of", "match", "match_user", "prefix_of"]


@dataclass(frozen=True)
class Match:
    """Where a name belongs, and the rules that may hold for it, their named groups filled in.

    The caller's rules may state sizes, as numbers in their patterns.
    """

    stack: str
    block: int | None
    main: bool
    rules: tuple[Rule, ...]
    sizes: tuple[tuple[str, int], ...] = ()


@cache
def _signature(family: Family) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return what finds a family's signature anywhere, and what finds the prefixes before it."""
    texts = (rf"(?:^|\.)(?:{family.signature})", rf"^((?:.+?\.)??)(?:{family.signature})")
    return re.compile(texts[0], re.MULTILINE), re.compile(texts[1], re.MULTILINE)


def families_of(keys: Iterable[str]) -> dict[str, Family]:
    """Return the family of each prefix that stands in front of a known signature."""
    text = "\n".join(keys)
    # Most blocks are alike, and most families are not there.
    forms = "\n".join(set(re.sub(r"\.\d+\.", ".0.", text).split("\n")))
    found: dict[str, Family] = {}
    for family in FAMILIES:
        anywhere, prefixes = _signature(family)
        if anywhere.search(forms):
            for matched in prefixes.finditer(text):
                found.setdefault(matched[1], family)
    return found


def prefix_of(families: Mapping[str, Family]) -> str:
    """Return the prefix of the one model that there is; raise if there are several."""
    # Stages that look like models of a known family are parts of one that is not.
    alike = Counter(re.sub(r"\d+", "0", prefix) for prefix in families)
    found = [p for p in families if alike[re.sub(r"\d+", "0", p)] == 1]
    if "" in found or not found:
        return ""
    if len(found) > 1:
        models = [f"{p!r} (a {families[p].library} {families[p].name})" for p in found]
        raise AnatomyError(
            f"there are {len(found)} models, under the names {first(models)}: pass one of them, as "
            f"model.get_submodule({found[0][:-1]!r}), or of a state dict the names with its prefix"
        )
    return found[0]


# Names repeat from model to model, and their remainders from block to block.
@lru_cache(maxsize=65536)
def match(family: Family, key: str) -> Match | None:
    """Return what a family's rules say of a name, or None."""
    for stack in family.stacks:
        matched = re.match(stack.prefix, key)
        if matched:
            groups = matched.groupdict()
            block = _number(groups.pop("block"))
            rules = _rules(family, stack, key[matched.end() :], tuple(groups.items()))
            if block is None or not rules:
                return None
            return Match(stack.name.format(**groups), block, stack.main, rules)
    rules = _rules(family, None, key, ())
    return Match("", None, False, rules) if rules else None


def block_of(family: Family, key: str) -> int | None:
    """Return the number of the block that a name lies in, explained or not; None outside."""
    found = (re.match(stack.prefix, key) for stack in family.stacks)
    return next((_number(matched["block"]) for matched in found if matched), None)


def match_user(rules: Sequence[Rule], keys: Sequence[str], shape: Sequence[int]) -> Match | None:
    """Return what the first of the caller's rules says that fits a shape and one of the names."""
    for rule in rules:
        matched = next(filter(None, (re.fullmatch(rule.match, key) for key in keys)), None)
        if matched is None:
            continue
        filled = _filled(rule, matched.groupdict())
        if solve(filled.pattern, shape, {}) is None:
            continue
        filled, sizes = _stated(filled)
        groups = matched.groupdict()
        block = None if groups.get("block") is None else _number(groups["block"])
        stack = "" if block is None else groups.get("stack") or "blocks"
        return Match(stack, block, stack == "blocks", (filled,), sizes)
    return None


def _stated(rule: Rule) -> tuple[Rule, tuple[tuple[str, int], ...]]:
    """Return a rule of the caller's with labels alone where they tell more, and sizes it states.

    A number behind the heads is the head dim; a token of one axis has one row.
    """
    heads = re.search(r"\bh (\d+)\b", rule.pattern)
    pattern, to = (re.sub(r"\bh \d+\b", "h k", text) for text in (rule.pattern, rule.to))
    if facts(rule.role).kind == "token" and len(parse(pattern).axes) == 1:
        to = to or f"r {pattern}"
    _, terms = parse(pattern).terms(len(rule.parts))
    numbers = {f for axes in terms for axis in axes for f in axis if f.isdigit() and f != "1"}
    sizes = [(f, int(f)) for f in sorted(numbers)] + ([("k", int(heads[1]))] if heads else [])
    return replace(rule, pattern=pattern, to=to), tuple(sizes)


def _number(digits: str) -> int | None:
    """Return the number of a block; None of what no model has."""
    return int(digits) if len(digits) < 6 else None


@lru_cache(maxsize=4096)
def _rules(
    family: Family, stack: Stack | None, rest: str, groups: tuple[tuple[str, str], ...]
) -> tuple[Rule, ...]:
    found = (
        (rule, re.fullmatch(rule.match, rest))
        for rule in (stack.rules if stack else family.outside)
    )
    return tuple(_filled(rule, {**dict(groups), **m.groupdict()}) for rule, m in found if m)


def _filled(rule: Rule, groups: Mapping[str, str]) -> Rule:
    """Return a rule with its named groups filled in."""
    role, pattern, to = (x.format(**groups) for x in (rule.role, rule.pattern, rule.to))
    parts = tuple(part.format(**groups) for part in rule.parts) or (role,)
    return replace(rule, role=role, pattern=pattern, parts=parts, to=to)
