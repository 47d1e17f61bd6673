"""Tensor-level initializers in the grammar of torch.nn.init.

Each fills a tensor in place and returns it, under no_grad and in the tensor's own dtype. Tensors on
the meta device and tensors without elements are left as they are.
"""

from weightinit.init._depth import interpolate_depth_, mix_
from weightinit.init._mimetic import mimetic_qk_, mimetic_vo_
from weightinit.init._products import kron_sum_, project_
from weightinit.init._select import select_
from weightinit.init._wavelet import wavelet_
from weightinit.init._widen import pad_, widen_

__all__ = [
    "interpolate_depth_",
    "kron_sum_",
    "mimetic_qk_",
    "mimetic_vo_",
    "mix_",
    "pad_",
    "project_",
    "select_",
    "wavelet_",
    "widen_",
]
