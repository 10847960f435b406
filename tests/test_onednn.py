"""Products by oneDNN are those of PyTorch's own functions, eager and recorded, where this processor has them or not."""

import pytest
import torch
from networks import relative_error
from torch import nn
from torch.nn import functional as F

from diffusion import onednn
from diffusion.onednn import attention, conv2d, linear
from diffusion.recording import Recording, recorded

CLOSE = 1e-5


@pytest.fixture(params=[0, onednn.WORTH], ids=["all", "large ones"])
def worth(request, monkeypatch):
    monkeypatch.setattr(onednn, "WORTH", request.param)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 12), (2, 5, 12), (2, 2, 3, 12)], ids=str)
@torch.inference_mode()
def test_linear(shape, bias, worth):
    weight, b = torch.randn(7, 12), torch.randn(7) if bias else None
    x, other = torch.randn(shape), torch.randn(shape)
    recording = Recording(lambda x: linear(x, weight, b), [x])
    for each in (x, other, x):
        expected = F.linear(each, weight, b)
        assert relative_error(linear(each, weight, b), expected) < CLOSE
        assert relative_error(recording(each), expected) < CLOSE


@pytest.mark.parametrize(("side", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (3, 2, 0), (1, 1, 0)])
@pytest.mark.parametrize("sides", [(4, 4), (5, 7)], ids=str)
@torch.inference_mode()
def test_conv2d(sides, side, stride, padding):
    layer = nn.Conv2d(8, 6, side, stride, padding).to(memory_format=torch.channels_last)
    recording = Recording(lambda x: conv2d(x, layer, layer.bias), [torch.randn(2, 8, *sides)])
    for _ in range(2):
        x = torch.randn(2, 8, *sides).contiguous(memory_format=torch.channels_last)
        assert relative_error(conv2d(x, layer, layer.bias), layer(x)) < CLOSE
        assert relative_error(recording(x), layer(x)) < CLOSE


@pytest.mark.parametrize("scores", [1, 40, 10**6], ids=["a row", "some rows", "all rows"])
@pytest.mark.parametrize("worth", [0], indirect=True)
@pytest.mark.parametrize("length", [9, 23])
@torch.inference_mode()
def test_attention(length, scores, worth, monkeypatch):
    monkeypatch.setattr(onednn, "LONG", 1)
    monkeypatch.setattr(onednn, "SCORES", scores)
    q, k, v = torch.randn(2, 3, 9, 8), torch.randn(2, 3, length, 8), torch.randn(2, 3, length, 8)
    recording = Recording(attention, [q, k, v])
    for inputs in ((q, k, v), (-q, 2 * k, v.flip(2)), (q, k, v)):
        expected = F.scaled_dot_product_attention(*inputs)
        assert relative_error(attention(*inputs), expected) < CLOSE
        assert relative_error(recording(*inputs), expected) < CLOSE


@torch.inference_mode()
def test_other_types_are_left_to_pytorch():
    x, weight = torch.randn(512, 64, dtype=torch.float64), torch.randn(64, 64, dtype=torch.float64)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_recorded_is_said_inside_a_recording_alone():
    said = []
    Recording(lambda x: said.append(recorded()) or x + 1, [torch.zeros(2)])
    assert said == [True]
    with pytest.raises(ZeroDivisionError):
        Recording(lambda x: x / (1 // 0), [torch.zeros(2)])
    assert not recorded()
