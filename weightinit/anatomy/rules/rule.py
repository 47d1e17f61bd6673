"""What a rule is: a name, its role and the meaning of its axes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from weightinit.anatomy.traits import Form, ModuleFacts

__all__ = ["QKV", "Family", "Rule", "Stack", "W", "linear"]

#: The last part of the name of a norm's parameter; ``{w}`` puts it into the role.
W = r"(?P<w>weight|bias)"
#: What a packed projection of queries, keys and values stores.
QKV = ("attn.q", "attn.k", "attn.v")


@dataclass(frozen=True)
class Rule:
    r"""One line of knowledge about parameter names; the first rule that fits a shape holds.

    Args:
        match: regular expression of the whole name, without wrapper prefixes. In a user's rule the
            named groups ``stack`` and ``block`` (digits) say which block of which stack is meant;
            without them the parameter lies outside the blocks.
        role: canonical role, such as ``"attn.qkv.weight"``; named groups fill in
            ``"norm1.{w}"``.
        pattern: axes as stored, such as ``"(3 h k) d"``; named groups fill it in as well.
        parts: canonical roles of the parts of a fused axis, in storage order.
        to: axes of each part in canonical orientation, where they are not simply those stored.
        when: a flag of the module (or ``!flag``) on which the rule depends, where shapes cannot
            tell.

    Examples:
        >>> import timm, torch
        >>> from weightinit.anatomy import Rule, anatomy
        >>> with torch.device("meta"):
        ...     model = timm.create_model("vit_tiny_patch16_224")
        ...     model.blocks[3].adapter = torch.nn.Linear(192, 16, bias=False)
        >>> rule = Rule(r"blocks\.(?P<block>\d+)\.adapter\.weight", "adapter.weight", "a d")
        >>> seen = anatomy(model, rules=[rule])
        >>> seen.sizes["a"], seen.blocks[3]["adapter.weight"].size
        (16, (16, 192))
    """

    match: str
    role: str
    pattern: str
    parts: tuple[str, ...] = ()
    to: str = ""
    when: str = ""


def linear(
    match: str,
    role: str,
    pattern: str,
    parts: tuple[str, ...] = (),
    *,
    join: str = r"\.",
) -> tuple[Rule, Rule]:
    """Return the rules of a layer's weight and of its bias, which has the weight's first axis.

    ``join`` stands between the layer's name and ``weight`` or ``bias``.
    """
    rows = re.findall(r"\([^)]*\)|\S+", pattern)[0]
    weights, biases = (tuple(f"{part}.{w}" for part in parts) for w in ("weight", "bias"))
    return (
        Rule(f"{match}{join}weight", f"{role}.weight", pattern, weights),
        Rule(f"{match}{join}bias", f"{role}.bias", rows, biases),
    )


@dataclass(frozen=True, eq=False)
class Stack:
    """Blocks of one kind; named groups of the prefix, ``block`` among them, fill in the name."""

    name: str
    prefix: str
    rules: tuple[Rule, ...]  # for what follows the prefix
    main: bool = True  # its blocks belong to the main stack, in order of appearance


@dataclass(frozen=True, eq=False)
class Family:
    """The names that one library gives to the parameters of one family of models.

    Args:
        name: name of the family.
        library: the library that gives these names.
        signature: regular expression that begins some names of the family and no others.
        stacks: rules for the blocks.
        outside: rules for everything else.
        buffers: regular expression of state-dict entries that are no parameters.
        flags: flags for ``Rule.when``, each with a regular expression: set if some name is matched.
        form: where all models of the family have the norms of their blocks.
        note: notes what a module of the family says of itself, where names and shapes are silent.
        proven: whether tests prove that its models grow without loss.
    """

    name: str
    library: str
    signature: str
    stacks: tuple[Stack, ...]
    outside: tuple[Rule, ...]
    buffers: str = r"(?!)"
    flags: tuple[tuple[str, str], ...] = ()
    form: Form | None = None
    note: Callable[[Any, ModuleFacts], None] = lambda module, noted: None
    proven: bool = False
