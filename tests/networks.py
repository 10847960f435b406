"""What the tests of the networks share."""

import torch
from torch import Tensor, nn


def randomize(network: nn.Module, seed: int = 0) -> None:
    """Noise in every parameter, also in those that start at 0 or 1; activations stay near unit size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + float("norm" in name and name.endswith("weight")))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def starved(network: nn.Module) -> list[str]:
    """Names of the parameters that the last backward pass gave no gradient, or one of zeros."""
    return [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
