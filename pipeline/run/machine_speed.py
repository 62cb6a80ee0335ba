"""Measures in a second how fast this machine trains, runs a model and runs Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pipeline.model.encoder import EncoderConfig

MEASURED_TOKENS = 1024  # of a timed batch: enough to keep the cores busy, and quick
LEAST_SECONDS = 0.1  # of a timing, after one run that does not count
THREADS_SHARE = 0.85  # of its speed alone that each further thread adds
PYTHON_ROUNDS = 200_000
PYTHON_REFERENCE_SECONDS = 0.0059  # for these rounds, on the machine where the constants of the forecast were measured


@dataclass(frozen=True)
class MachineSpeed:
    """How fast this machine is.

    Attributes:
        device: what trains: "2 cores", or an accelerator's name.
        training: operations per second of a training step, of which the forward pass is a third, on one process.
        inference: operations per second of a forward pass in the precision of the training.
        measuring: operations per second of a forward pass in float32.
        cpu: operations per second of a forward pass in float32 on the CPU.
        python: how many times slower Python is here than where the forecast's constants were measured.
    """

    device: str
    training: float
    inference: float
    measuring: float
    cpu: float
    python: float


def measure_speed(config: EncoderConfig, precision: str, batch_size: int, length: int) -> MachineSpeed:
    """Times one transformer layer on this machine, and keeps the result for the life of the process.

    Args:
        config: the model's shape.
        precision: the recipe's.
        batch_size, length: of a training batch; a large batch is cut to about a thousand tokens.
    """
    length = min(max(length, 8), config.max_positions)
    batch = max(1, min(batch_size, MEASURED_TOKENS // length))
    return _measure(config.with_(layers=1, vocab_size=1, max_positions=1), precision, batch, length)


@lru_cache(maxsize=8)
def _measure(config: EncoderConfig, precision: str, batch: int, length: int) -> MachineSpeed:
    import torch

    from pipeline.distill.trainer import compute_dtype, device
    from pipeline.model.flops import layer_flops

    place, dtype = device(), compute_dtype(precision)
    threads = torch.get_num_threads()
    # One thread can be timed while other programs run: threads that wait for each other would lose far more by them.
    single = float(batch * layer_flops(config, length))
    several = single * (1 + THREADS_SHARE * (threads - 1))
    operations = several if place.type == "cpu" else single
    with torch.random.fork_rng(), one_thread():
        training = time_layer(config, batch, length, place, dtype, backward=True)
        inference = time_layer(config, batch, length, place, dtype)
        measuring = time_layer(config, batch, length, place, torch.float32)
        cpu = measuring
        if place.type != "cpu":
            cpu = time_layer(config, batch, length, torch.device("cpu"), torch.float32)
    return MachineSpeed(
        device=device_name(),
        training=3 * operations / training,
        inference=operations / inference,
        measuring=operations / measuring,
        cpu=several / cpu,
        python=time_python() / PYTHON_REFERENCE_SECONDS,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Makes torch compute on one thread inside the block."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def device_name() -> str:
    """Returns in words what trains on this machine: its cores or its accelerator."""
    import torch

    from pipeline.distill.trainer import device

    place = device()
    if place.type == "cuda":
        return str(torch.cuda.get_device_name(place))
    cores = torch.get_num_threads()
    return f"{cores} cores" if cores > 1 else "1 core"


def time_layer(
    config: EncoderConfig,
    batch: int,
    length: int,
    place: torch.device,
    dtype: torch.dtype,
    backward: bool = False,
) -> float:
    """Returns the seconds of a forward pass through one layer, with `backward` those of a training step."""
    import torch

    from pipeline.model.encoder import Layer

    layer = Layer(config).to(place).train(backward)
    hidden = torch.randn(batch, length, config.hidden_size, device=place, requires_grad=backward)
    bias = torch.zeros(batch, 1, length, device=place)

    def step() -> None:
        with torch.set_grad_enabled(backward), torch.autocast(place.type, dtype, enabled=dtype != torch.float32):
            output = layer(hidden, bias)
        if backward:
            output.sum().backward()
        if place.type != "cpu":
            torch.accelerator.synchronize()

    return time_repeated(step)


def time_repeated(work: Callable[[], object]) -> float:
    """Returns the seconds of the fastest of several runs, which is the one that other programs disturbed least."""
    work()
    fastest, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < LEAST_SECONDS:
        start = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def time_python() -> float:
    """Returns the seconds of a fixed loop in plain Python."""

    def loop() -> int:
        total = 0
        for number in range(PYTHON_ROUNDS):
            total += number % 7
        return total

    return time_repeated(loop)
