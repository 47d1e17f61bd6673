"""What a rule is: a name, its role and the meaning of its axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from weightinit.anatomy.traits import Form, Look

__all__ = ["Family", "Rule", "Stack"]


@dataclass(frozen=True)
class Rule:
    r"""One line of knowledge about parameter names; the first rule that fits a shape holds.

    Args:
        match: regular expression of the whole name, without wrapper prefixes. In a user's rule the
            named groups ``stack`` and ``block`` (digits) say which block of which stack is meant;
            without them the parameter lies outside the blocks.
        role: canonical name, e.g. ``"attn.qkv.weight"``; named groups fill it in: ``"norm1.{w}"``.
        pattern: axes as stored, e.g. ``"(3 h k) d"``; named groups fill it in as well.
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


@dataclass(frozen=True, eq=False)
class Stack:
    """A sequence of like blocks.

    Args:
        name: of the stack; named groups of the prefix fill it in.
        prefix: regular expression of the names' beginning, with a group ``block``.
        rules: of what follows the prefix.
        main: whether its blocks belong to the main stack, in order of appearance.
    """

    name: str
    prefix: str
    rules: tuple[Rule, ...]
    main: bool = True


@dataclass(frozen=True, eq=False)
class Family:
    """The names that one library gives to the parameters of one family of models.

    Args:
        name: of the family.
        library: whose names they are.
        signature: regular expression that begins some names of the family and no others.
        stacks: its blocks.
        outside: rules for everything else.
        buffers: regular expression of state-dict entries that are no parameters.
        flags: flags for ``Rule.when``, each with a regular expression: set if some name is matched.
        form: where the norms of its blocks are, if they are there in all models of the family.
        look: notes what a module of the family says of itself, where names and shapes are silent.
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
    look: Callable[[Any, Look], None] = lambda module, found: None
    proven: bool = False
