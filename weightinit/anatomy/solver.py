"""Solves the sizes of all axis labels together, and picks the rule that fits each shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from weightinit.anatomy.labels import LOCAL_LABELS
from weightinit.anatomy.match import Match
from weightinit.anatomy.pattern import parse, solve
from weightinit.anatomy.rules import Rule
from weightinit.anatomy.source import TensorInfo
from weightinit.errors import AnatomyError
from weightinit.text import first

__all__ = ["HINT", "Group", "names", "solve_all"]

HINT = (
    "explain them with rules=[Rule(match=r'...', role='...', pattern='...')], "
    "or pass only the submodule that is known"
)


@dataclass
class Group:
    """Parameters of one shape for which the same rules may hold; in the end one rule is left."""

    shape: tuple[int, ...]
    rules: list[Rule]
    members: list[int] = field(default_factory=list)
    guessed: bool = False


def solve_all(
    entries: Sequence[TensorInfo],
    matches: Sequence[Match],
    sizes: dict[str, int],
    flags: dict[str, bool],
) -> list[Group]:
    """Return the parameters in groups of one rule each; sizes and flags are completed in place.

    Raises:
        AnatomyError: naming every parameter whose shape no rule fits, or the sizes left open.
    """
    groups: dict[tuple[int, tuple[int, ...]], Group] = {}
    for i, (entry, matched) in enumerate(zip(entries, matches, strict=True)):
        key = (id(matched.rules), entry.shape)
        if key not in groups:
            axes = len(entry.shape)
            fitting = [r for r in matched.rules if len(parse(r.pattern).axes) == axes]
            groups[key] = Group(entry.shape, fitting)
        groups[key].members.append(i)
    pending, wrong = list(groups.values()), []
    while pending:
        before = _state(pending, sizes)
        pending = [group for group in pending if not _settle(group, sizes, flags)]
        wrong += [group for group in pending if not group.rules]
        pending = [group for group in pending if group.rules]
        if before == _state(pending, sizes):
            doubtful = next((group for group in pending if len(group.rules) > 1), None)
            if doubtful is None:
                break
            # Nothing more follows by itself: the first rule that still fits holds.
            del doubtful.rules[1:]
            doubtful.guessed = True
    if wrong:
        raise _contradiction(wrong, entries, matches, sizes)
    if pending:
        raise _left_open(pending, entries, sizes)
    _check_flags(groups.values(), entries, matches, flags)
    return list(groups.values())


def _state(pending: Sequence[Group], sizes: Mapping[str, int]) -> tuple[int, int, int]:
    return len(pending), len(sizes), sum(len(group.rules) for group in pending)


def _settle(group: Group, sizes: dict[str, int], flags: dict[str, bool]) -> bool:
    """Drop the rules that contradict what is known; learn from the only one left; tell if solved.

    A shape that only one value of a flag explains tells that flag for all parameters.
    """
    fitting = []
    for rule in group.rules:
        solved = solve(rule.pattern, group.shape, sizes)
        if solved is not None and flags.get(rule.when.lstrip("!")) is not rule.when.startswith("!"):
            fitting.append((rule, solved))
    group.rules[:] = [rule for rule, _ in fitting]
    if len(fitting) != 1:
        return False
    rule, solved = fitting[0]
    if rule.when and not group.guessed:
        flags.setdefault(rule.when.lstrip("!"), not rule.when.startswith("!"))
    sizes.update((x, size) for x, size in solved.items() if x not in LOCAL_LABELS)
    return parse(rule.pattern).labels <= solved.keys() | sizes.keys()


def _contradiction(
    wrong: Sequence[Group],
    entries: Sequence[TensorInfo],
    matches: Sequence[Match],
    sizes: Mapping[str, int],
) -> AnatomyError:
    lines = []
    for group in wrong:
        rules = matches[group.members[0]].rules
        known = {x: sizes[x] for r in rules for x in parse(r.pattern).labels if x in sizes}
        patterns = " or ".join(dict.fromkeys(f'"{rule.pattern}"' for rule in rules))
        lines.append(
            f"{names(entries[i] for i in group.members)} of shape {group.shape} should be "
            f"{patterns} with {dict(sorted(known.items()))}"
        )
    return AnatomyError(
        f"the shapes of {sum(len(g.members) for g in wrong)} parameters contradict the others: "
        f"{'; '.join(lines)}. If the model is right, {HINT}"
    )


def _left_open(
    pending: Sequence[Group], entries: Sequence[TensorInfo], sizes: Mapping[str, int]
) -> AnatomyError:
    labels = {x for group in pending for x in parse(group.rules[0].pattern).labels}
    missing = sorted(labels - sizes.keys() - LOCAL_LABELS)
    if "h" in missing:
        what, first = "the head count h follows from no shape", "h"
    else:
        what, first = f"the sizes {missing} follow from no shape", missing[0]
    ways = f"pass the model itself instead of its state dict, or sizes={{{first!r}: 6}} with the "
    if first == "h":
        ways += (
            "true number (heads=6 to Ancestor.open); a model of your own tells it by an attribute "
            "num_heads, and a rule by its head dim, as in '(3 h 64) d'"
        )
    else:
        ways += "true number"
    left = (entries[i] for group in pending for i in group.members)
    return AnatomyError(f"{what} (of {names(left)}): {ways}")


def _check_flags(
    groups: Iterable[Group],
    entries: Sequence[TensorInfo],
    matches: Sequence[Match],
    flags: Mapping[str, bool],
) -> None:
    """Refuse to guess what only a module tells, such as which half of a packed GLU is its gate."""
    doubtful = [g for g in groups if g.rules[0].when and g.rules[0].when.lstrip("!") not in flags]
    if not doubtful:
        return
    asked = dict.fromkeys(group.rules[0].when.lstrip("!") for group in doubtful)
    rules = dict.fromkeys(
        _as_users_rule(group.rules[0], matches[group.members[0]]) for group in doubtful
    )
    raise AnatomyError(
        f"{names(entries[i] for group in doubtful for i in group.members)}: no shape tells "
        f"{' or '.join(map(repr, asked))}, on which the order of their parts depends: pass the "
        f"model itself instead of its state dict, or the true order, as in "
        f"rules=[{', '.join(rules)}]"
    )


def _as_users_rule(rule: Rule, matched: Match) -> str:
    """Return the code by which a caller states a rule."""
    prefix = "" if matched.block is None else rf"{matched.stack}\.(?P<block>\d+)\."
    parts = f", parts={rule.parts}" if len(rule.parts) > 1 else ""
    to = f", to={rule.to!r}" if rule.to else ""
    return f"Rule(r'{prefix}{rule.match}', {rule.role!r}, {rule.pattern!r}{parts}{to})"


def names(entries: Iterable[TensorInfo]) -> str:
    """Return the first names of parameters, and how many more there are."""
    return first([entry.name for entry in entries])
