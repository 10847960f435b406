"""A function of tensors, recorded once and played back: what a CUDA graph is, for the CPU.

Where feature maps are small, most of a network's time goes by on the way to the kernels: in Python, in making views,
in allocating. A recording keeps the kernels alone, in order, each with the tensors that it reads and writes; what
does not depend on the function's inputs is computed once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

KEPT = 8  # recordings of a function: each has what it makes of weights, and buffers

Step = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def rows(x: Tensor) -> Tensor:
    """[..., C] => [N, C], a view: what is copied now would not be what is there later."""
    return x.view(-1, x.shape[-1])


# How a function writes its result into a tensor that is there. What is not listed makes a new one, which is copied.
INTO: dict[Any, Callable[..., Step]] = {
    F.linear: lambda out, x, weight, bias=None: (
        (torch.mm, (rows(x), weight.t()), {"out": rows(out)})
        if bias is None
        else (torch.addmm, (bias, rows(x), weight.t()), {"out": rows(out)})
    ),
    Tensor.contiguous: lambda out, x: (Tensor.copy_, (out, x), {}),
    Tensor.add: lambda out, *args, **kwargs: (torch.add, args, kwargs | {"out": out}),
    Tensor.new_zeros: lambda out, *size: (Tensor.zero_, (out,), {}),
} | {
    function: lambda out, *args, function=function, **kwargs: (function, args, kwargs | {"out": out})
    for function in (torch.add, torch.bmm, torch.baddbmm, torch.cat, torch.softmax, F.gelu)
}


# The built-in functions that these, which are Python's, call after some checks.
BUILT_IN: dict[Any, Callable[..., Any]] = {F.group_norm: torch.group_norm, F.layer_norm: torch.layer_norm}


class Call(NamedTuple):
    """A call of one of PyTorch's functions, as it was seen."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    writes: list[Tensor]  # those of its arguments that it changed


class Listener(TorchFunctionMode):
    """Lists the calls made inside that give or change tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = [(tensor, tensor._version) for tensor in tensors((args, kwargs)) if not tensor.is_inference()]
        result = function(*args, **kwargs)
        writes = [tensor for tensor, version in before if tensor._version != version]
        if writes or tensors(result):
            self.calls.append(Call(function, args, kwargs, result, writes))
        return result


_recorded: ContextVar[bool] = ContextVar("_recorded", default=False)


def recorded() -> bool:
    """Whether what is made of weights alone, here and now, is made once for all calls."""
    return _recorded.get()


@contextmanager
def listening() -> Iterator[Listener]:
    token = _recorded.set(True)
    try:
        with Listener() as listener:
            yield listener
    finally:
        _recorded.reset(token)


class Recording:
    """`function` for inputs of these shapes; it must do the same whatever the numbers in them.

    Its result is overwritten by the next call. An input that is given again is taken to be as it was.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode do not tell who wrote on them
            self.inputs = [tensor.clone() for tensor in inputs]
            with listening() as listener:
                result = function(*self.inputs)
            self.program, self.result = compiled(listener.calls, self.inputs, result)
        self.given: list[Tensor | None] = [None] * len(inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for i, tensor in enumerate(inputs):
            if tensor is not self.given[i]:  # the text's are the same all picture long
                self.inputs[i].copy_(tensor)
                self.given[i] = tensor
        for function, args, kwargs in self.program:
            function(*args, **kwargs)
        return self.result


class Recordings:
    """The function's recordings, one for all inputs of the same shapes: those that were used last, `KEPT` of them."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.of: dict[tuple[torch.Size, ...], Recording] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        shapes = tuple(tensor.shape for tensor in inputs)
        recording = self.of.pop(shapes, None) or Recording(self.function, inputs)
        self.of[shapes] = recording
        if len(self.of) > KEPT:
            del self.of[next(iter(self.of))]
        return recording(*inputs)


def compiled(calls: Sequence[Call], inputs: Sequence[Tensor], result: Tensor) -> tuple[list[Step], Tensor]:
    """The calls that are left to be made for new inputs, and the tensor that they leave the result in.

    Results get buffers of their own, which are used again once nothing will read them: as many as the function
    needs at one time, so that they stay in the cache.
    """
    last_use = {storage(tensor): i for i, call in enumerate(calls) for tensor in tensors(call[1:4])}
    last_use |= {storage(tensor): len(calls) for tensor in (*inputs, result)}
    done_at = defaultdict(list)
    for key, i in last_use.items():
        done_at[i].append(key)

    variable = {storage(tensor) for tensor in (*inputs, *(t for call in calls for t in call.writes))}
    stands_for = {id(tensor): tensor for tensor in inputs}  # a tensor as it was seen => as it will be
    buffers: dict[int, torch.UntypedStorage] = {}
    free: dict[int, list[torch.UntypedStorage]] = defaultdict(list)  # by size
    program: list[Step] = []

    def now(values: Any) -> Any:
        """The same arguments with every tensor as it will be."""
        if isinstance(values, Tensor):
            return stands_for.get(id(values), values)
        if isinstance(values, dict):
            return {key: now(value) for key, value in values.items()}
        return type(values)(map(now, values)) if type(values) in (tuple, list) else values

    def buffer(tensor: Tensor) -> Tensor:
        size = tensor.untyped_storage().nbytes()
        buffers[storage(tensor)] = free[size].pop() if free[size] else torch.UntypedStorage(size)
        return torch.empty(0, dtype=tensor.dtype).set_(buffers[storage(tensor)], 0, tensor.shape, tensor.stride())

    for i, (function, args, kwargs, made, writes) in enumerate(calls):
        read = {storage(tensor) for tensor in tensors((args, kwargs))}
        results = tensors(made)
        if variable.isdisjoint(read.union(map(storage, results))):
            continue  # a constant, which stands for itself
        if writes:
            program.append((function, now(args), now(kwargs)))
            stands_for |= {id(tensor): now(target) for tensor, target in zip(results, writes, strict=False)}
        elif read.issuperset(map(storage, results)):  # views
            stands_for |= zip(map(id, results), tensors(function(*now(args), **now(kwargs))), strict=True)
        else:
            targets = [buffer(tensor) for tensor in results]
            stands_for |= zip(map(id, results), targets, strict=True)
            variable.update(map(storage, results))
            if function is not Tensor.new_empty:
                program.append(into(targets, function, now(args), now(kwargs)))
        for key in done_at[i]:
            if key in buffers:
                free[buffers[key].nbytes()].append(buffers[key])
    return program, now(result)


def into(targets: list[Tensor], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
    """The call, writing its results into `targets`."""
    function = BUILT_IN.get(function, function)
    if function in INTO:
        return INTO[function](*targets, *args, **kwargs)

    def copied() -> None:
        for target, tensor in zip(targets, tensors(function(*args, **kwargs)), strict=True):
            target.copy_(tensor)

    def copied_alone(copy: Callable[[Tensor], Tensor] = targets[0].copy_) -> None:
        copy(function(*args, **kwargs))

    return copied_alone if len(targets) == 1 else copied, (), {}


def tensors(values: Any) -> list[Tensor]:
    """Those in nested tuples, lists and dictionaries; not oneDNN's, which are constants and have no storage."""
    if isinstance(values, Tensor):
        return [values] if values.layout is torch.strided else []
    nested: Iterable[Any] = values.values() if isinstance(values, dict) else values
    return [t for value in nested for t in tensors(value)] if isinstance(values, tuple | list | dict) else []


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
