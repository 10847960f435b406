"""3x3 convolutions, as sampling wants them: in little memory, and with fewer operations. Exact up to rounding.

Which kernel is the fastest goes by a layer's shape and the processor's kind; so bytes do, too. The bounds are two
cores' with AVX2.
Kernels take maps channels last, [B, h, w, C], that are padded already.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.onednn import ONEDNN, conv2d, linear, packs
from diffusion.winograd import winograd

# Numbers of the largest feature map that is normalised whole, 64 MB in float32; a larger one goes in bands of rows.
BAND = 2**24
# Pixels of the largest map that is convolved by one matrix product, which is faster there than oneDNN's convolution,
# unless that has its weights laid out already.
PRODUCT = 8 * 8
# Channels, in and out, and pixels in all, from which Winograd's algorithm takes 0.5 to 0.8 of a plain convolution's
# time. With 128 channels its additions cost what its products save; with fewer pixels its filters do, and all the
# sooner the faster products are.
CHANNELS, PIXELS = 256, 4096 if ONEDNN else 2048
SUMMED = 2**14  # pixels whose mean and variance are taken at a time, in float32

Kernel = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]  # x, weight, bias, stride => [B, h, w, O]


def convolve(x: Tensor, layer: nn.Conv2d, added: Tensor | None = None) -> Tensor:
    """The layer's convolution [B, C, h, w] => [B, O, h', w'], with something added [O] to its bias."""
    kernel, bias = _kernel(x, layer), _bias(layer, added)
    if kernel is _direct:
        return conv2d(x, layer, bias)
    return kernel(_padded(x), layer.weight, bias, layer.stride[0]).permute(0, 3, 1, 2)


def _kernel(x: Tensor, layer: nn.Conv2d) -> Kernel:
    """The fastest for the layer at x [B, C, h, w]."""
    (batch, channels, height, width), weight = x.shape, layer.weight
    if x.is_cpu and weight.shape[2:] == (3, 3) and layer.padding == (1, 1) and not packs(x):
        if height * width <= PRODUCT:
            return _product
        wide = min(channels, len(weight)) >= CHANNELS and x.dtype == torch.float32
        if wide and layer.stride == (1, 1) and batch * height * width >= PIXELS:
            return _winograd
    return _direct


def _bias(layer: nn.Conv2d, added: Tensor | None) -> Tensor | None:
    return layer.bias if added is None else added if layer.bias is None else layer.bias + added


def _padded(x: Tensor) -> Tensor:
    """[B, C, h, w] => [B, h + 2, w + 2, C], with zeros around."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1].copy_(x.permute(0, 2, 3, 1))
    return padded


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """A matrix product: neighbourhoods by the weight."""
    batch, height, width, channels = x.shape
    side = weight.shape[2]
    height, width = ((length - side) // stride + 1 for length in (height, width))
    image, row, pixel, _ = x.stride()
    rows = x.as_strided((batch, height, width, side, side * channels), (image, stride * row, stride * pixel, row, 1))
    matrix = weight.permute(0, 2, 3, 1).flatten(1)  # [O, k k C], a view where weights are channels last
    return linear(rows.contiguous().view(-1, matrix.shape[1]), matrix, bias).view(batch, height, width, -1)


def _winograd(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    assert stride == 1
    return winograd(x, weight, bias)


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """PyTorch's own."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride).permute(0, 2, 3, 1)


def normed(x: Tensor, norm: nn.GroupNorm, layer: nn.Conv2d, added: Tensor | None = None, over: bool = False) -> Tensor:
    """The layer's convolution of silu(norm(x)); `over`: it may take the place of x, which has as many channels.

    Of a large map only x and the result are ever whole. At 512x512 the autoencoder's 256 channels are 268 MB, and
    as much again after the norm, after the activation and in the layout that a kernel prefers. The norm's
    statistics need all of x; once they are known, the rest goes band by band, each with a row of its neighbours.
    """
    if x.numel() <= BAND:
        return convolve(F.silu(norm(x), inplace=True), layer, added)
    scale, shift = _affine(x, norm)
    kernel, bias = _kernel(x, layer), _bias(layer, added)
    batch, channels, height, width = x.shape
    out = x if over else x.new_empty(batch, height, width, layer.out_channels).permute(0, 3, 1, 2)
    above = None  # the last row of the band before, which may be overwritten by now
    for top, end in bands(x):
        padded = x.new_zeros(batch, end - top + 2, width + 2, channels)
        seen = x[:, :, top : end + 1]  # with a row of the neighbour below
        inside = padded[:, 1 : 1 + seen.shape[2], 1:-1].permute(0, 3, 1, 2)
        F.silu(torch.addcmul(shift, seen, scale, out=inside), inplace=True)
        if above is not None:
            padded[:, 0] = above
        above = padded[:, end - top].clone()
        out[:, :, top:end] = kernel(padded, layer.weight, bias, 1).permute(0, 3, 1, 2)
    return out


def bands(x: Tensor) -> Iterator[tuple[int, int]]:
    """First row of each band of a map [B, C, h, w], and of the next; bands are whole tiles of Winograd's."""
    height = x.shape[2]
    rows = height if x.numel() <= BAND else max(4, BAND // 4 // x[:, :, 0].numel() // 4 * 4)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _affine(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift [B, C, 1, 1] that are the group norm of x."""
    mean, square = (moment.unflatten(1, (norm.num_groups, -1)).mean(2) for moment in _moments(x))  # [B, G]
    each = x.shape[1] // norm.num_groups
    deviation = (square - mean**2 + norm.eps).sqrt().to(x).repeat_interleave(each, 1)  # [B, C]
    scale = norm.weight / deviation
    shift = norm.bias - mean.to(x).repeat_interleave(each, 1) * scale
    return scale[:, :, None, None], shift[:, :, None, None]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's mean and mean square [B, C], in float64.

    Batch norm's statistics are a channel's, and come 17 times as fast as `var_mean` of a map channels last. They
    are sums in float32: so they are taken of some rows at a time.
    """
    means, squares, counts = [], [], []
    rows = max(1, SUMMED // x.shape[3])
    for part in x.split(rows, dim=2):
        found = [torch.ops.aten.batch_norm_update_stats(image[None], None, None, 0.0) for image in part]
        mean, variance = (torch.stack(each).double() for each in zip(*found, strict=True))
        means.append(mean)
        squares.append(variance + mean**2)
        counts.append(part.shape[2] / x.shape[2])
    weights = means[0].new_tensor(counts)[:, None, None]
    return (torch.stack(means) * weights).sum(0), (torch.stack(squares) * weights).sum(0)


def doubled(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """The layer's 3x3 convolution of x [B, C, h, w] with every pixel repeated twice each way: [B, O, 2h, 2w].

    A pixel of the result sees 2x2 pixels of x: which, and by which sums of weights, depends on whether its row and
    its column are even or odd. So it is four convolutions of 2x2, 4/9 of the operations, and x stays small.
    """
    batch, _, height, width = x.shape
    out = x.new_empty(batch, 2 * height, 2 * width, layer.out_channels)
    padded = _padded(x)
    kernel = _product if x.is_cpu and height * width <= PRODUCT else _direct
    for i in (0, 1):
        a, b, c = layer.weight.unbind(2)
        taller = torch.stack([a, b + c] if i == 0 else [a + b, c], 2)  # [O, C, 2, 3]
        for j in (0, 1):
            a, b, c = taller.unbind(3)
            weight = torch.stack([a, b + c] if j == 0 else [a + b, c], 3)  # [O, C, 2, 2]
            weight = weight.contiguous(memory_format=torch.channels_last)
            seen = padded[:, i : i + height + 1, j : j + width + 1]
            out[:, i::2, j::2].copy_(kernel(seen, weight, layer.bias, 1))
    return out.permute(0, 3, 1, 2)
