"""Learned operators of methods, saved and loaded as bundles of kinds of their own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from weightinit.errors import BundleError, ProjectionError
from weightinit.files.bundle import Bundle, Wanted, copies
from weightinit.files.checks import check_name, check_shape
from weightinit.files.config import BundleConfig

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Operator", "OperatorBundle"]


class OperatorBundle(Bundle):
    """What a method learned; ``config.options`` are ``shapes`` by name and the method's ``own``.

    A subclass sets ``kind``, and ``method`` to the name under which weightinit has the options.
    """

    method: ClassVar[str]

    @classmethod
    def wanted(cls, config: BundleConfig) -> Mapping[str, Wanted]:
        """Return the shapes that the options state."""
        options = config.options
        shapes = options.get("shapes")
        if options.keys() != {"shapes", "own"} or not isinstance(shapes, Mapping):
            raise BundleError(
                f"options of the bundle are not those of a {cls.method} operator: use shapes and "
                f"own, as {cls.method}.save_pretrained writes them"
            )
        wanted: dict[str, Wanted] = {}
        for name, shape in shapes.items():
            key = _stored(name) if name.isprintable() else name
            check_name(key)
            wanted[key] = check_shape(key, shape if isinstance(shape, list) else [shape])
        return wanted

    @classmethod
    def about(cls, config: BundleConfig, name: str) -> tuple[str, str, str]:
        """Return the card's own words."""
        code = (
            "import weightinit as wi\n"
            f"operator = wi.{cls.method}.from_pretrained({name})\n"
            "wi.project_from(ancestor, model, method=operator)  # of the sizes it was trained for"
        )
        return f"{cls.method} operator", code, f"Learned for a model of {config.depth} blocks."


def _stored(name: str) -> str:
    """Return a name in the alphabet of files: ``width.in:h k`` is ``width.in_h_k``."""
    return re.sub("[^A-Za-z0-9_.]", "_", name)


class Operator:
    """Options of a method and what it learned; a bundle for the three verbs."""

    bundle: ClassVar[type[OperatorBundle]]

    def contents(self) -> tuple[dict[str, Any], Mapping[str, Tensor], int]:
        """Return options, learned tensors by name and the depth, or raise ProjectionError."""
        raise NotImplementedError

    @classmethod
    def of_contents(cls, own: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the options with what was learned; what it raises makes the bundle unsound."""
        raise NotImplementedError

    def to_bundle(
        self,
        *,
        licence: str = "Apache-2.0",
        provenance: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> OperatorBundle:
        """Return a bundle of copies of what was learned.

        Args:
            licence: SPDX identifier of the licence.
            provenance: where it comes from, plain JSON.
            dtype: dtype of the bundle's tensors.

        Raises:
            ProjectionError: if nothing was learned yet.
        """
        own, tensors, depth = self.contents()
        shapes = {name: list(value.shape) for name, value in tensors.items()}
        kind = self.bundle.kind
        options, provenance = {"shapes": shapes, "own": own}, dict(provenance or {})
        config = BundleConfig(kind, kind, options, {}, depth, licence, provenance=provenance)
        return self.bundle(config, copies({_stored(k): v for k, v in tensors.items()}, dtype))

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Self:
        """Load what was learned, fp32 on the CPU; arguments are :meth:`Bundle.from_pretrained`'s.

        Raises:
            BundleError: if the bundle cannot be found or is not sound.
        """
        bundle = cls.bundle.from_pretrained(name, **options)
        shapes, own = bundle.config.options["shapes"], bundle.config.options["own"]
        tensors = {key: bundle.tensors[_stored(key)].float() for key in shapes}
        try:
            return cls.of_contents(own, tensors)
        except (AttributeError, LookupError, TypeError, ValueError, ProjectionError) as error:
            method, reason = cls.bundle.method, str(error)[:200]
            raise BundleError(
                f"{bundle.source} holds no {method} operator ({reason}): pass a bundle that "
                f"{method}.save_pretrained wrote"
            ) from error

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write a bundle into a folder, whole or not at all: :meth:`Bundle.save_pretrained`."""
        self.to_bundle().save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload a bundle; arguments, result and errors are :meth:`Bundle.push_to_hub`'s."""
        return self.to_bundle().push_to_hub(repo_id, **options)
