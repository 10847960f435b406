"""The one training loop: accelerate underneath; resuming is running the same command.

A trainer hands over a network and a function from global sample indices to a loss. Sample `i` of a run means the same
picture, caption, noise and time for ever, whatever the batch, the number of processes or the restarts: all its draws
are functions of (seed, i). So a checkpoint holds weights, the optimizer's moments, the average, the step and the sums
that the next line of the metrics is made of, no more.
"""

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from clip.durable import write_atomically
from train import checkpoints
from train.curve import draw_curve

Metrics = dict[str, Tensor]
Loss = Callable[
    [nn.Module, list[int]], tuple[Tensor, Metrics]
]  # (network, sample indices) -> mean loss, more to log


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast; every field can be set in a recipe's `[stage.training]` table."""

    steps: int
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 100  # steps of linear rise; the rate then falls to zero by half a cosine
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    average: float = 0.999  # decay a step of the average of the weights, reached gradually
    seed: int = 0
    precision: str = "auto"  # auto | no | bf16: auto takes bf16 where the hardware multiplies it
    compile: bool = False
    checkpoint_every: int = 500
    log_every: int = 20
    sample_every: int = 500


class Stopped(Exception):
    """Training was asked to stop (Ctrl-C or SIGTERM) and has written a checkpoint."""


def fit(
    network: nn.Module,
    loss: Loss,
    config: LoopConfig,
    folder: Path,
    samples: Callable[[nn.Module, Path], None] | None = None,
) -> nn.Module:
    """Trains `network` in place for `config.steps` steps and returns it holding the average of its weights.

    `folder` receives checkpoints/, metrics.jsonl, loss.png and whatever `samples(averaged network, folder)` draws. A
    run found there is continued; a finished one returns at once.
    Raises ValueError when the folder holds a run of other settings or the loss stays non-finite, Stopped when asked to.
    """
    _claim(folder, config, network)
    torch.set_flush_denormal(True)  # numbers under 1e-38 make a CPU's step much slower and nothing better
    accelerator = Accelerator(mixed_precision=_precision(config.precision))
    network.to(accelerator.device)
    average = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.AdamW(
        _parameter_groups(network, config.weight_decay),
        lr=config.learning_rate, betas=config.betas, fused=True,
    )  # fmt: skip
    state = _resume(folder, network, average, optimizer)
    step = state["step"]
    metrics = _Metrics(folder / "metrics.jsonl", state)
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    if config.compile:
        wrapped = torch.compile(wrapped)
    main = accelerator.is_main_process

    def keep(step: int) -> None:
        if main:
            tensors = {
                "weights": network.state_dict(),
                "average": average,
                "optimizer": _moments(network, optimizer),
            }
            checkpoints.save(folder / "checkpoints", step, tensors, metrics.state())
            draw_curve(folder / "metrics.jsonl", folder / "loss.png")

    skipped = 0
    bar = tqdm(
        total=config.steps, initial=step, desc=folder.name, unit="step", disable=not main, mininterval=1
    )
    with _stop_requests() as stop_requested, bar:
        while step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate(step, config)
            first = step * config.batch
            indices = list(
                range(first + accelerator.process_index, first + config.batch, accelerator.num_processes)
            )
            with accelerator.autocast():
                value, more = loss(wrapped, indices)
            accelerator.backward(value)
            value = value.detach()
            norm = accelerator.clip_grad_norm_(network.parameters(), config.clip_norm)
            if math.isfinite(float(norm)) and math.isfinite(float(value)):
                optimizer.step()
                skipped = 0
            else:
                skipped += 1
                bar.write(f"step {step}: loss {float(value)}, gradient norm {float(norm)}: not applied")
                if skipped == 10:
                    raise ValueError(
                        f"The loss or its gradient was not finite for {skipped} steps on end, at step {step}: "
                        "lower learning_rate or check the data."
                    )
            optimizer.zero_grad()
            step += 1
            _update_average(average, network, min(config.average, (1 + step) / (10 + step)))
            metrics.add(step, loss=value, norm=norm, **more)
            bar.update()
            if main and (step % config.log_every == 0 or step == config.steps):
                bar.set_postfix(loss=f"{metrics.write():.4f}")
            stopping = stop_requested()
            if stopping or step % config.checkpoint_every == 0 or step == config.steps:
                keep(step)
            if stopping:
                raise Stopped(
                    f"Stopped at step {step} of {config.steps}; the same command goes on from there."
                )
            if main and samples and (step % config.sample_every == 0 or step == config.steps):
                with _holding(network, average):
                    samples(network, folder)
    network.load_state_dict(average)
    return network.eval()


def rate(step: int, config: LoopConfig) -> float:
    """The learning rate's factor at a step: linear warm-up, then half a cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


# draws: functions of (seed, global sample index)


def order(indices: list[int], size: int, seed: int) -> list[int]:
    """The picture of each global sample index: a fresh permutation of `size` pictures an epoch."""
    permutations = {epoch: _permutation(size, seed, epoch) for epoch in {i // size for i in indices}}
    return [permutations[i // size][i % size] for i in indices]


def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(size, generator=generator(seed, epoch)).tolist()


def generator(seed: int, index: int) -> torch.Generator:
    """A generator that depends on (seed, index) alone (splitmix64 of the pair)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return torch.Generator().manual_seed(mixed ^ (mixed >> 31))


# the pieces


def _precision(asked: str) -> str:
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    # AVX-512 BF16 or AMX; without them a CPU emulates bf16, many times slower than fp32.
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; gains, biases and scalars do not. Together they are all the parameters."""
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2]
    plain = [p for p in trained if p.ndim < 2]
    assert len(decayed) + len(plain) == len(trained)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _claim(folder: Path, config: LoopConfig, network: nn.Module) -> None:
    """Writes the configuration beside the run, or refuses a folder that holds a run of another one."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {name: list(parameter.shape) for name, parameter in network.named_parameters()}
    text = json.dumps({"loop": dataclasses.asdict(config), "parameters": shapes}, indent=1)
    path = folder / "training.json"
    if not path.exists():
        write_atomically(path, text.encode())
    elif path.read_text() != text:
        raise ValueError(f"{folder} holds a training with other settings: choose another --out or remove it.")


def _resume(
    folder: Path, network: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Takes up the newest checkpoint, if there is any, and returns its state: `step` and the metrics' sums."""
    found = checkpoints.newest(folder / "checkpoints")
    if found is None:
        return {"step": 0}
    tensors, state = found
    network.load_state_dict(tensors["weights"])
    for name, tensor in average.items():
        tensor.copy_(tensors["average"][name])
    names = {parameter: name for name, parameter in network.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = names[parameter] + "/"
            moments = {
                key.removeprefix(prefix): value
                for key, value in tensors["optimizer"].items()
                if key.startswith(prefix)
            }
            # The fused optimizer keeps all of its state, the step too, beside the parameter.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
    return state


def _moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, flat: `parameter/exp_avg` and so on."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }  # fmt: skip


@torch.no_grad()
def _update_average(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    current = network.state_dict()
    floats = [name for name, tensor in average.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([average[n] for n in floats], [current[n] for n in floats], 1 - decay)


@contextmanager
def _holding(network: nn.Module, average: dict[str, Tensor]) -> Iterator[None]:
    """The network with the average in place of its weights, in eval mode, for as long as the block lasts."""
    trained = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(average)
    network.eval()
    try:
        yield
    finally:
        network.load_state_dict(trained)
        network.train()


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Lets the step in flight end on Ctrl-C or SIGTERM: yields a function that says whether a stop was asked for."""
    asked: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: asked.append(number)) for number in signals]
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


class _Metrics:
    """Means over the last steps, one JSON line each; lines past the step resumed from, or torn, are dropped."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path, self.step, self.start = path, state["step"], time.monotonic()
        self.sums: dict[str, Tensor | float] = state.get("sums", {})
        self.count = state.get("count", 0)
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
        write_atomically(path, "".join(line + "\n" for line in kept).encode())

    def add(self, step: int, **values: Tensor) -> None:
        self.step, self.count = step, self.count + 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def state(self) -> dict[str, Any]:
        """What the next line is to be made of so far."""
        return {"sums": {name: float(total) for name, total in self.sums.items()}, "count": self.count}

    def write(self) -> float:
        means = {name: round(float(total) / self.count, 6) for name, total in self.sums.items()}
        seconds = (time.monotonic() - self.start) / self.count
        with self.path.open("a") as file:
            file.write(json.dumps({"step": self.step, "seconds_a_step": round(seconds, 4), **means}) + "\n")
        self.sums, self.count, self.start = {}, 0, time.monotonic()
        return means["loss"]
