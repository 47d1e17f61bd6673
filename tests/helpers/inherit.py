"""What tests of inheritance share: a module as a source of weights, and filling a model from it."""

import copy
import re

import pytest
import timm
import torch

from weightinit.anatomy import anatomy
from weightinit.plan import Plan


class Stub:
    """A module, or a state dict of one, as a source of weights."""

    def __init__(self, model, values=None):
        self.anatomy = anatomy(model)
        self.model = model
        self.values = values or {n: p.detach() for n, p in model.named_parameters()}

    def part(self, piece):
        return self.anatomy.split(piece.spec, self.values[piece.spec.name])[piece.role]

    def module(self):
        return copy.deepcopy(self.model)


def small_vit(width=24, heads=3, depth=2, **kwargs):
    """A timm ViT with every parameter random, norms and biases too."""
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": width, "num_heads": heads}
    model = timm.create_model(
        "vit_tiny_patch16_224", **{"depth": depth, "num_classes": 5, **sizes, **kwargs}
    )
    return randomise(model, width + depth)


def randomise(model, seed=0):
    """Make every parameter random, norms and biases too; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + (name.split(".")[-2:-1] > ["norm"] and parameter.ndim == 1))
    return model.eval()


def narrow_eps(model, note):
    """Set the eps of the norms over the residual stream to what a report's note says."""
    found = re.search(r"eps to (\S+) of the ancestor's", note)
    for name, module in model.named_modules():
        over = getattr(module, "normalized_shape", None)
        if found and over == (model.embed_dim,) and not {"attn", "mlp"} & {*name.split(".")}:
            module.eps *= float(found[1])


def fill(model, source, method, **options):
    """Fill a model from a module by a method; returns the plan's report."""
    source = Stub(source) if isinstance(source, torch.nn.Module) else source
    seen = anatomy(model)
    planned = method.plan(source, seen, **options)
    plan = Plan(model, seen, planned.recipes(seen), source="stub", notes=lambda: planned.notes)
    plan.commit()
    return plan.report()


def logits(model, seed=0):
    """What a model says of three random images, in its own dtype."""
    like = next(model.parameters())
    size = model.patch_embed.img_size
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.eval()(images.to(like))


def bert(width, tied):
    """A Hugging Face BERT for masked words with every parameter random, in fp64."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=31, hidden_size=width, num_hidden_layers=2, num_attention_heads=width // 8,
        intermediate_size=width * 3, max_position_embeddings=8, tie_word_embeddings=tied,
    )  # fmt: skip
    return randomise(transformers.BertForMaskedLM(config)).double()


def says(model):
    """What a model of any kind here says of one input."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if hasattr(model, "config"):
            return model(torch.randint(31, (2, 8), generator=generator)).logits
        return model(torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64))
