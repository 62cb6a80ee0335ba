"""Describes a benchmarked system: how its programs are made, and how the worker process runs them.

The worker process imports the files of all runtimes, but must not hold the memory of all their libraries. So these
files import their libraries, and the project's model and export code, only inside the functions that need them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pipeline.bundle.manifest import Manifest

if TYPE_CHECKING:
    from pipeline.bench.runtimes.weights import StudentWeights

FORWARD = "forward"  # the only method of a `.pte` file that is not a bundle
INPUT_SEED = 0
PEERS_REMEDY = "pip install -c constraints.txt -e '.[peers]'"

RunOnce = Callable[[], Sequence[Any]]  # runs a program once and returns its answer: logits, or start and end logits


class WorkerProgram(Protocol):
    """A program in the worker process.

    The constructor imports the system's runtime. Load time and memory are measured after it, from `load` on.

    Attributes:
        threads: number of threads that the loaded program runs on.
    """

    threads: int

    def __init__(self, path: Path, threads: int, manifest: Manifest) -> None: ...

    def load(self) -> None:
        """Opens the program."""

    def prepare(self, length: int, depth: int) -> RunOnce:
        """Makes the inputs of that length in tokens, and returns a function that runs `depth` segments on them."""


@dataclass(frozen=True)
class Variant:
    """One way to make a system's program.

    Attributes:
        make: takes the weights and a length in tokens, and returns the path of the program.
        name: tells this variant from the system's others; empty if there is only one.
        fixed_length: True if a program takes one length only. `make` is then called for every measured length.
            Otherwise it is called once, with the longest length that the bundle takes.
    """

    make: Callable[[StudentWeights, int], Path]
    name: str = ""
    fixed_length: bool = False


@dataclass(frozen=True)
class System:
    """A system that a benchmark measures.

    Attributes:
        name: the `system` of its measurements.
        program: runs its programs in the worker process.
        variants: ways to make its program from the bundle's weights. A system with variants is a peer of the bundle.
        precision: the `precision` of its measurements; empty for the bundle's own scheme.
        fastest_only: True if a report keeps only the fastest variant at each length.
        modules: Python modules without which it cannot be measured.
        remedy: the command that installs them.
        converter_packages: packages whose versions decide what a made program contains.
        runtime_package: the package that runs its programs; reports record its version.
        find_obstacle: returns why this computer cannot run the system even with its modules, or None if it can.
    """

    name: str
    program: type[WorkerProgram]
    variants: tuple[Variant, ...] = ()
    precision: str = ""
    fastest_only: bool = False
    modules: tuple[str, ...] = ()
    remedy: str = PEERS_REMEDY
    converter_packages: tuple[str, ...] = ()
    runtime_package: str | None = None
    find_obstacle: Callable[[], str | None] = lambda: None

    def obstacle(self) -> str | None:
        """Returns why this computer cannot measure the system and what to do about it, or None if it can."""
        missing = [name for name in self.modules if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} cannot be imported; run: {self.remedy}"
        return self.find_obstacle()


@dataclass(frozen=True)
class ProgramSource:
    """A program file or folder that one worker process loads, and what its measurements say about it.

    Attributes:
        system: a name in `pipeline.bench.runtimes.table.SYSTEMS`.
        path: the file or folder that the worker opens.
        model, precision, variant: as in `Measurement`.
        file_bytes: bytes that an app would ship.
        lengths: measured lengths in tokens.
        depths: measured depths in segments or layers.
        fastest_only: as in `System`.
    """

    system: str
    path: Path
    model: str
    precision: str
    file_bytes: int
    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    variant: str = ""
    fastest_only: bool = False


def random_ids(vocab_size: int, length: int) -> Tensor:
    """Returns valid token ids, int64 [1, length]; the same arguments always give the same ids."""
    return torch.randint(0, vocab_size, (1, length), generator=torch.Generator().manual_seed(INPUT_SEED))
