"""3x3 convolutions, as sampling wants them: in little memory, and with fewer operations. Exact up to rounding."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Numbers of the largest feature map that is normalised whole, 64 MB in float32; a larger one goes in bands of rows.
BAND = 2**24
# Pixels of the largest map that is convolved by one matrix product. MKL's is faster there than oneDNN's convolution.
PRODUCT = 8 * 8


def convolve(x: Tensor, layer: nn.Conv2d, added: Tensor | None = None) -> Tensor:
    """The layer's convolution [B, C, h, w] => [B, O, h', w'], with something added [O] to its bias."""
    weight, bias = layer.weight, _bias(layer, added)
    pixels = x.shape[-2] * x.shape[-1]
    if x.is_cpu and pixels <= PRODUCT and weight.shape[2:] == (3, 3) and layer.padding == (1, 1):
        return _product(_padded(x), weight, bias, layer.stride[0])
    return F.conv2d(x, weight, bias, layer.stride, layer.padding)


def _bias(layer: nn.Conv2d, added: Tensor | None) -> Tensor | None:
    return layer.bias if added is None else added if layer.bias is None else layer.bias + added


def _padded(x: Tensor) -> Tensor:
    """[B, C, h, w] => [B, h + 2, w + 2, C], with zeros around."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1].copy_(x.permute(0, 2, 3, 1))
    return padded


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """A convolution of x [B, h, w, C], which is padded, as a matrix product: neighbourhoods by the weight."""
    batch, height, width, channels = x.shape
    side = weight.shape[2]
    height, width = ((length - side) // stride + 1 for length in (height, width))
    image, row, pixel, _ = x.stride()
    rows = x.as_strided((batch, height, width, side, side * channels), (image, stride * row, stride * pixel, row, 1))
    matrix = weight.permute(0, 2, 3, 1).flatten(1)  # [O, k k C], a view where weights are channels last
    product = F.linear(rows.contiguous().view(-1, matrix.shape[1]), matrix, bias)
    return product.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same by PyTorch's own kernel."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias)


def normed(x: Tensor, norm: nn.GroupNorm, layer: nn.Conv2d, added: Tensor | None = None) -> Tensor:
    """The layer's convolution of silu(norm(x)).

    Of a large map only x and the result are ever whole. At 512x512 the autoencoder's 256 channels are 268 MB, and
    as much again after the norm, after the activation and in the layout that a kernel prefers. The norm's
    statistics need all of x; once they are known, the rest goes band by band, each with a row of its neighbours.
    """
    if x.numel() <= BAND:
        return convolve(F.silu(norm(x), inplace=True), layer, added)
    scale, shift = _affine(x, norm)
    bias = _bias(layer, added)
    batch, _, height, width = x.shape
    out = x.new_empty(batch, height, width, layer.out_channels).permute(0, 3, 1, 2)
    rows = max(1, BAND // 4 // x[:, :, 0].numel())
    for top in range(0, height, rows):
        end = min(top + rows, height)
        above, below = int(top > 0), int(end < height)  # a row of the neighbours, or else of zeros
        band = F.silu(torch.addcmul(shift, x[:, :, top - above : end + below], scale), inplace=True)
        band = F.pad(band, (0, 0, 1 - above, 1 - below))
        out[:, :, top:end] = F.conv2d(band, layer.weight, bias, padding=(0, 1))
    return out


def _affine(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift [B, C, 1, 1] that are the group norm of x."""
    groups = x.unflatten(1, (norm.num_groups, -1))  # [B, G, C / G, h, w]
    variance, mean = torch.var_mean(groups.float(), dim=(2, 3, 4), correction=0)  # [B, G]
    each = x.shape[1] // norm.num_groups
    scale = norm.weight * (variance + norm.eps).rsqrt().to(x).repeat_interleave(each, 1)  # [B, C]
    shift = norm.bias - mean.to(x).repeat_interleave(each, 1) * scale
    return scale[:, :, None, None], shift[:, :, None, None]


def doubled(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """The layer's 3x3 convolution of x [B, C, h, w] with every pixel repeated twice each way: [B, O, 2h, 2w].

    A pixel of the result sees 2x2 pixels of x: which, and by which sums of weights, depends on whether its row and
    its column are even or odd. So it is four convolutions of 2x2, 4/9 of the operations, and x stays small.
    """
    batch, _, height, width = x.shape
    out = x.new_empty(batch, 2 * height, 2 * width, layer.out_channels).permute(0, 3, 1, 2)
    padded, small = _padded(x), x.is_cpu and height * width <= PRODUCT
    for i in (0, 1):
        a, b, c = layer.weight.unbind(2)
        taller = torch.stack([a, b + c] if i == 0 else [a + b, c], 2)  # [O, C, 2, 3]
        for j in (0, 1):
            a, b, c = taller.unbind(3)
            weight = torch.stack([a, b + c] if j == 0 else [a + b, c], 3)  # [O, C, 2, 2]
            weight = weight.contiguous(memory_format=torch.channels_last)
            seen = padded[:, i : i + height + 1, j : j + width + 1]
            convolved = _product if small else _direct
            out[:, :, i::2, j::2].copy_(convolved(seen, weight, layer.bias))
    return out
