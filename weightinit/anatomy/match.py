"""Which rules may hold for a parameter's name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from weightinit.anatomy.rules import FAMILIES, Family, Rule, Stack

__all__ = ["Match", "family_of", "match", "match_user"]


@dataclass(frozen=True)
class Match:
    """Where a name belongs, and the rules that may hold for it, their named groups filled in."""

    stack: str
    block: int | None
    main: bool
    rules: tuple[Rule, ...]


def family_of(keys: Iterable[str]) -> Family | None:
    """Return the family whose signature begins one of the names."""
    keys = list(keys)
    for family in FAMILIES:
        signature = re.compile(family.signature)
        if any(map(signature.match, keys)):
            return family
    return None


# Names repeat from model to model, and their remainders from block to block.
@lru_cache(maxsize=65536)
def match(family: Family, key: str) -> Match | None:
    """Return what a family's rules say of a name, or None."""
    for stack in family.stacks:
        matched = re.match(stack.prefix, key)
        if matched:
            groups = matched.groupdict()
            block = int(groups.pop("block"))
            rules = _rules(family, stack, key[matched.end() :], tuple(groups.items()))
            name = stack.name.format(**groups)
            return Match(name, block, stack.main, rules) if rules else None
    rules = _rules(family, None, key, ())
    return Match("", None, False, rules) if rules else None


def match_user(rules: Sequence[Rule], key: str) -> Match | None:
    """Return what the caller's own rules say of a name, or None."""
    for rule in rules:
        matched = re.fullmatch(rule.match, key)
        if matched:
            block = matched.groupdict().get("block")
            stack = "" if block is None else matched.groupdict().get("stack") or "blocks"
            place = (stack, None if block is None else int(block), stack == "blocks")
            return Match(*place, _fill([rule], key, {}))
    return None


@lru_cache(maxsize=4096)
def _rules(
    family: Family, stack: Stack | None, rest: str, groups: tuple[tuple[str, str], ...]
) -> tuple[Rule, ...]:
    return _fill(stack.rules if stack else family.outside, rest, dict(groups))


def _fill(rules: Iterable[Rule], name: str, groups: Mapping[str, str]) -> tuple[Rule, ...]:
    filled = []
    for rule in rules:
        matched = re.fullmatch(rule.match, name)
        if matched:
            filling = {**groups, **matched.groupdict()}
            texts = (rule.role, rule.pattern, rule.to)
            role, pattern, to = (text.format(**filling) for text in texts)
            parts = tuple(part.format(**filling) for part in rule.parts) or (role,)
            filled.append(Rule(rule.match, role, pattern, parts, to, rule.when))
    return tuple(filled)
