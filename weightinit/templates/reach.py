"""How far a model may be from the sizes that templates were trained at."""

from __future__ import annotations

import math

from weightinit.anatomy import Anatomy, Traits, label_of
from weightinit.templates.bundle import TemplateBundle

__all__ = ["TOKENS", "WIDTH", "out_of_reach"]

#: Up to how many times the patches and the width of its training the default bundle was measured:
#: 192 x 6 at 64 patches, product photos, 150 steps of 32 at the best of three rates
#: (docs/benchmarks.md, "The default templates").
TOKENS, WIDTH = 4, 3


def out_of_reach(bundle: TemplateBundle, target: Anatomy) -> list[str]:
    """Return a doubt if a target is larger than where the default bundle was measured to help.

    Examples:
        >>> import timm, weightinit as wi
        >>> bundle = wi.TemplateBundle.from_pretrained("cifar10-w64")
        >>> near = timm.create_model("vit_tiny_patch16_224", img_size=128, depth=1)  # 64 patches
        >>> out_of_reach(bundle, wi.anatomy(near))
        []
    """
    trained, sizes = Traits.of(bundle.config.traits), bundle.config.sizes
    streams = [x for x in sizes if label_of(x).stream and x in target.sizes]
    pairs = [("width", sizes[x], target.sizes[x], WIDTH) for x in streams]
    if trained.grid and target.traits.grid:
        old, new = math.prod(trained.grid), math.prod(target.traits.grid)
        pairs.append(("number of patches", old, new, TOKENS))
    beyond = [
        f"a {what} of {new}, trained at {old} and measured up to {old * times}"
        for what, old, new, times in pairs
        if new > old * times
    ]
    if not beyond:
        return []
    return [
        f"this model is far from what the shipped {bundle.source} was trained for "
        f"({'; '.join(beyond)}, where 150 steps on photos gave cifar10-w64 39 % and random "
        "weights 23 %). If there is a pretrained network of its family, weightinit.project_from("
        "ancestor, model) starts from one that is closer; name templates= to take these all the "
        "same"
    ]
