"""Attacks by the tensors: not finite, missing, unknown, of other shapes, or expanding for ever."""

import torch
from helpers.bundles import SIZES
from safetensors.torch import save

from hostile.base import attack, edit_tensors, seal
from weightinit.files.config import BundleConfig
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import TemplateKind

FC1 = "mlp.fc1.weight"


def set_value(name, value, **options):
    def change(tensors):
        tensors[name].view(-1)[-1] = value

    return lambda folder: edit_tensors(folder, change, **options)


@attack("templates.norm1.weight hold NaN")
def nan(folder):
    set_value("templates.norm1.weight", torch.nan)(folder)


@attack("outside.pos hold NaN or infinity")
def infinity_in_half_precision(folder):
    set_value("outside.pos", torch.inf, dtype=torch.float16)(folder)


@attack("scalers.norm1.weight hold NaN or infinity")
def nan_in_bfloat16(folder):
    set_value("scalers.norm1.weight", torch.nan, dtype=torch.bfloat16)(folder)


@attack(r"lacks tensors \[templates.mlp.fc1.weight\]")
def template_missing(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(f"templates.{FC1}"))


@attack(r"lacks tensors \[scalers.mlp.fc1.weight\]")
def scalers_missing(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(f"scalers.{FC1}"))


@attack(r"lacks tensors \[fitted.0.<kind>\]")
def fitted_missing(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(f"fitted.0.{FC1}"))


@attack(r"unknown ones \[optimizer.state\]")
def extra(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"optimizer.state": torch.ones(1)}))


@attack(r"unknown ones \[templates.mlp.fc9.weight\]")
def extra_kind(folder):
    edit_tensors(folder, lambda t: t.update({"templates.mlp.fc9.weight": torch.ones(2, 8, 8)}))


@attack(r"unknown ones \[fitted.1.mlp.fc1.weight\]")
def extra_fitted(folder):
    edit_tensors(folder, lambda t: t.update({f"fitted.1.{FC1}": torch.ones(2, 2, 2, 1)}))


@attack(r"unknown ones \[fitted.00.mlp.fc1.weight\]")
def extra_fitted_alias(folder):
    edit_tensors(folder, lambda t: t.update({f"fitted.00.{FC1}": torch.ones(2, 2, 2, 1)}))


@attack(r"unknown ones \[outside.Classifier.weight, outside._x\]")
def outside_malformed(folder):
    extra = {"outside.Classifier.weight": torch.ones(3, 8), "outside._x": torch.ones(1)}
    edit_tensors(folder, lambda t: t.update(extra))


@attack("outside.head.weight has shape")
def outside_of_another_number_of_classes(folder):
    shaped("outside.head.weight", 4, 8)(folder)


def shaped(name, *shape):
    return lambda folder: edit_tensors(folder, lambda t: t.update({name: torch.ones(shape)}))


@attack("templates.mlp.fc1.weight has shape")
def template_of_another_shape(folder):
    shaped(f"templates.{FC1}", 2, 8, 4)(folder)


@attack("templates.mlp.fc1.weight has shape")
def template_of_another_number(folder):
    shaped(f"templates.{FC1}", 5, 8, 8)(folder)


@attack("scalers.mlp.fc1.weight has shape")
def scalers_of_another_number(folder):
    shaped(f"scalers.{FC1}", 3, 5, 2, 1)(folder)


@attack("scalers.mlp.fc1.weight has shape")
def scalers_of_another_depth(folder):
    shaped(f"scalers.{FC1}", 4, 2, 2, 1)(folder)


@attack("scalers.mlp.fc1.weight has shape")
def scalers_of_another_rank(folder):
    shaped(f"scalers.{FC1}", 3, 2, 2)(folder)


@attack("scalers.mlp.fc1.weight has shape")
def scalers_of_another_size(folder):
    shaped(f"scalers.{FC1}", 3, 2, 4, 4)(folder)


@attack("fitted.0.mlp.fc1.weight has shape")
def fitted_of_another_depth(folder):
    shaped(f"fitted.0.{FC1}", 3, 2, 2, 1)(folder)


@attack("outside.norm.weight has shape")
def outside_of_another_width(folder):
    shaped("outside.norm.weight", 9)(folder)


@attack("outside.pos has shape")
def outside_of_another_rank(folder):
    shaped("outside.pos", 1, 5, 8)(folder)


def bomb(folder, kind, size, tensors, *, fitted=()):
    """Write a bundle of one kind, everything about it consistent."""
    options = TemplateConfig("wave", size["d"], {FC1: kind}).to_dict()
    config = BundleConfig(
        "templates", "wave", options, SIZES | size, 1, "Apache-2.0", fitted=fitted
    )
    (folder / "model.safetensors").write_bytes(save(tensors))
    (folder / "config.json").write_text(config.to_json())
    seal(folder)


@attack("expansion bomb: .* scalers expand them to 274877906944")
def expansion_of_scalers(folder):
    """One MB of templates and one of scalers make a matrix of 256 GiB."""
    n = 512
    tensors = {f"templates.{FC1}": torch.ones(1, n, n), f"scalers.{FC1}": torch.ones(1, 1, n, n)}
    bomb(folder, TemplateKind(1, (n, n)), {"d": n * n, "m": n * n}, tensors)


@attack("expansion bomb: .* fitted.0 expand")
def expansion_of_fitted(folder):
    n = 512
    tensors = {
        f"templates.{FC1}": torch.ones(1, n, n),
        f"scalers.{FC1}": torch.ones(1, 1, 1, 1),
        f"fitted.0.{FC1}": torch.ones(1, 1, n, n),
    }
    fitted = ({"depth": 1, "sizes": {}},)
    bomb(folder, TemplateKind(1, (n, n)), {"d": n, "m": n}, tensors, fitted=fitted)


@attack("expansion bomb: .* 100000 templates of 1 values")
def expansion_of_targets(folder):
    """Templates of one value: the scalers of any target take 100,000 times its own size."""
    n = 100_000
    tensors = {f"templates.{FC1}": torch.ones(n, 1, 1), f"scalers.{FC1}": torch.ones(1, n, 1, 1)}
    bomb(folder, TemplateKind(n, (1, 1)), {"d": 1, "m": 1}, tensors)
