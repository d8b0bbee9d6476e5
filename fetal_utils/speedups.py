"""What makes a training step fast on a CPU, each left out in turn, in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from fetal_utils.benchmarks import seconds_of
from fetal_utils.contrast import SimCLR
from fetal_utils.depthwise import DepthwiseConv2d
from fetal_utils.environment import torch_generator
from fetal_utils.losses import nt_xent_loss
from fetal_utils.memory import keep_freed_memory
from fetal_utils.models import build_encoder
from fetal_utils.optimisers import build_optimiser, descend, warmup_cosine

WARM_UP = 2  # steps of a new process; the first ones claim memory and choose kernels


class Speedups(NamedTuple):
    """What makes a training step fast on a CPU; each can be left out."""

    quick_depthwise: bool = True
    kept_memory: bool = True
    channels_last: bool = True


SPEEDUPS = {
    "all three": Speedups(),
    "without quick depthwise gradients": Speedups(quick_depthwise=False),
    "without channels last": Speedups(channels_last=False),
    "without kept memory": Speedups(kept_memory=False),
    "none of them": Speedups(False, False, False),
}


def build_step(speedups: Speedups, views: tuple[Tensor, Tensor], *, backbone: str, seed: int) -> Callable[[], Tensor]:
    """A function that takes a SimCLR step on a CPU, with speed-ups left out, and returns the loss before it.

    Parameters
    ----------
    speedups : Speedups
        ``kept_memory`` belongs to the process and is not looked at.
    views : tuple of two Tensors, shape (n_images, 1, image_size, image_size)
        Ready-made, and the same in every step.
    backbone : str
        A timm name.
    seed : int
        Decides the first weights.
    """
    encoder = build_encoder(backbone, init="random", seed=seed)
    if not speedups.quick_depthwise:
        slow_depthwise(encoder)
    layout = torch.channels_last if speedups.channels_last else torch.contiguous_format
    model = SimCLR(encoder, projection_dim=128, seed=seed).to(memory_format=layout).train()
    optimiser = build_optimiser(model, lr=5e-4, weight_decay=1e-4)
    schedule = warmup_cosine(optimiser, n_steps=1000, n_warmup=0)
    batch = torch.cat(views).contiguous(memory_format=layout)

    def step() -> Tensor:
        # not `contrast_step`, which always takes channels last
        loss = nt_xent_loss(*model(batch).chunk(2), temperature=0.1)
        descend(model, optimiser, schedule, loss)
        return loss.detach()

    return step


def slow_depthwise(module: nn.Module) -> None:
    """Undo `quicken_depthwise`, in place."""
    for layer in module.modules():
        if type(layer) is DepthwiseConv2d:
            layer.__class__ = nn.Conv2d


def time_speedups(*, n_repeats: int, **step) -> pd.DataFrame:
    """Seconds of training steps with and without each of the `SPEEDUPS`, shape (n_repeats, n_ways).

    They take turns, each time in a process of its own, since kept memory can't be undone. Keywords are those
    of `time_steps`.
    """
    rounds = [{name: in_fresh_process(time_steps, name, **step) for name in SPEEDUPS} for _ in range(n_repeats)]
    return pd.DataFrame(rounds)


def in_fresh_process(function: Callable, *args, **kwargs) -> object:
    """What a module's function returns in a process that has done nothing but import this module.

    Raises
    ------
    RuntimeError
        If the process was killed. What the function raises is raised here.
    """
    # a child of this process would inherit how it treats its memory; the server starts anew and imports once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(writer, function, args, kwargs))
    process.start()
    writer.close()  # the other end is now the only one, and ends with the process
    try:
        result, error = reader.recv()
    except EOFError:
        process.join()
        reason = f"{function.__name__} ended without a result (exit code {process.exitcode})"
        raise RuntimeError(f"{reason}; -9 is often a lack of memory: try a smaller batch") from None
    process.join()
    if error:
        raise error
    return result


def _send_result(writer: Connection, function: Callable, args: tuple, kwargs: dict) -> None:
    try:
        message = function(*args, **kwargs), None
    except Exception as error:
        message = None, error
    writer.send(message)


def time_steps(name: str, *, backbone: str, image_size: int, batch_size: int, n_steps: int, seed: int) -> float:
    """Seconds of ``n_steps`` steps, after `WARM_UP` others, with one of the `SPEEDUPS`, for this process alone."""
    if SPEEDUPS[name].kept_memory:
        keep_freed_memory()
    views = torch.rand(2, batch_size, 1, image_size, image_size, generator=torch_generator(seed, 0)).unbind()
    step = build_step(SPEEDUPS[name], views, backbone=backbone, seed=seed)
    for _ in range(WARM_UP):
        step()
    return seconds_of(lambda: [step() for _ in range(n_steps)])
