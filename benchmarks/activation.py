"""The least memory that a network's feature maps take, run as it is written: computed, not measured."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion.conditioning import SIZES, Conditioning
from diffusion.model import Model
from diffusion.unet import UNet


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and are still referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[StorageWeakRef, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {StorageWeakRef(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := StorageWeakRef(tensor.untyped_storage())) not in given:
                self.made[storage] = tensor.untyped_storage().nbytes()
        self.made = {storage: size for storage, size in self.made.items() if not storage.expired()}
        self.most = max(self.most, sum(self.made.values()))
        return result


def largest(run: Callable[[], Any]) -> int:
    """Bytes of the largest set of feature maps that are alive at once, operator by operator; nothing is computed."""
    with torch.no_grad(), Alive() as alive:
        run()
    return alive.most


def bound(model: Model, shape: tuple[int, ...]) -> tuple[int, int]:
    """Bytes of a model's weights, and of its largest activation: a guided step's or the decoder's.

    model: on the CPU, as it was trained. shape: of a picture's latents, [1, C, h, w]. Attention counts without a
    matrix of scores.
    """
    networks = (*model.text_encoders, model.unet, model.autoencoder)
    weights = sum(weight.nbytes for network in networks for weight in network.state_dict().values())
    unet: UNet = model.unet
    with FakeTensorMode(allow_non_fake_inputs=True):
        latents, t = torch.empty(shape), torch.empty(2)
        rows = torch.empty(2, unet.config.in_channels, *shape[2:], dtype=unet.conv_in.weight.dtype)
        length = model.text_encoders[0].config.length
        text = Conditioning(torch.empty(2, length, unet.config.text_channels, dtype=rows.dtype))
        if unet.config.addition_embed_type:
            sizes = torch.empty(2, SIZES)
            text = replace(text, pooled=torch.empty(2, unet.config.pooled_channels(SIZES)).to(rows), sizes=sizes)
        context = unet.context(text)
        step = largest(lambda: unet(rows, t, context))
        return weights, max(step, largest(lambda: model.autoencoder.decode(latents)))
