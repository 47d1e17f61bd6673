"""What kron_sum must equal, and inputs for it."""

import torch

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def reference(templates, scalers, order="block"):
    """Eq. 4 of WAVE as it is written: a loop of torch.kron, in float64."""
    templates, scalers = templates.double(), scalers.double()
    if scalers.ndim > templates.ndim:
        return torch.stack([reference(templates, layer, order) for layer in scalers])
    pairs = zip(templates, scalers, strict=True)
    return sum(torch.kron(s, t) if order == "block" else torch.kron(t, s) for t, s in pairs)


def make(n=3, w=(2, 5), s=(3, 2), lead=(), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    templates = torch.randn(n, *w, generator=generator, dtype=torch.float64)
    scalers = torch.randn(*lead, n, *s, generator=generator, dtype=torch.float64)
    return templates.to(dtype), scalers.to(dtype)
