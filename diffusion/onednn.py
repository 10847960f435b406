"""Linear layers, convolutions and attention by the library that is the fastest on this processor.

PyTorch gives float32 products to MKL, which uses AVX-512 on Intel's processors alone. On AMD's, oneDNN, which PyTorch
gives most convolutions to, makes the same products in half of the time, and in less if it may lay out the weights as it
likes. The operators that ask for this are torch.compile's own.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.recording import recorded

ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
# Keys from which PyTorch's own attention, by MKL's products, takes longer than two products and a softmax do; and how
# many scores are there at a time, 8 MB.
LONG, SCORES = 1024, 2**21
WORTH = 2**20  # multiplications from which it is: the way to oneDNN takes 10 us, that to MKL 1


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x [..., I], weight [O, I] and bias [O] => [..., O], after a GELU if asked. No gradient flows through it.

    In a recording the weight is taken to be a constant.
    """
    if not (_is_able(x) and x.numel() * len(weight) >= WORTH):
        plain = F.linear(x, weight, bias)
        return F.gelu(plain) if gelu else plain
    if recorded():
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, x.numel() // x.shape[-1])
    return _linear(x, weight, bias, "gelu" if gelu else "none")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")


def conv2d(x: Tensor, layer: nn.Conv2d, bias: Tensor | None) -> Tensor:
    """The layer's convolution [B, C, h, w] => [B, O, h', w'], with a bias in place of its own."""
    if not packs(x):
        return F.conv2d(x, layer.weight, bias, layer.stride, layer.padding)
    place = (layer.padding, layer.stride, layer.dilation)
    packed = torch.ops.mkldnn._reorder_convolution_weight(layer.weight, *place, 1, x.shape)
    return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *place, 1, "none", [], "")


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of queries [B, H, N, D], keys and values [B, H, L, D] => [B, H, N, D]."""
    if not (_is_able(q) and k.shape[2] >= LONG):
        return F.scaled_dot_product_attention(q, k, v)
    q = q * q.shape[3] ** -0.5
    out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)
    rows = max(1, SCORES // k.shape[2])
    for head in itertools.product(*map(range, q.shape[:2])):
        keys, values = k[head].contiguous(), v[head].t().contiguous()
        for some, result in zip(q[head].split(rows), out[head].split(rows), strict=True):
            scores = _linear(some, keys)
            result.copy_(_linear(torch.softmax(scores, dim=1, out=scores), values))
    return out


def packs(x: Tensor) -> bool:
    """Whether a convolution of x is one by weights that are laid out once."""
    return recorded() and _is_able(x)


def _is_able(x: Tensor) -> bool:
    return ONEDNN and x.is_cpu and x.dtype == torch.float32
