"""The oldest versions of ExecuTorch, iOS and Android that run a bundle's programs."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from pydantic import Field

from pipeline.names import Backend
from pipeline.support.document import Document
from pipeline.support.errors import UserError

# ExecuTorch's own packages set these floors: its Swift package declares iOS 17 (1.4.1, and the source of August 2026),
# and the native libraries of org.pytorch:executorch-android 1.4.1 need API 26.
EXECUTORCH_IOS = "17.0"
EXECUTORCH_ANDROID_API = 26


class Requirements(Document):
    """The oldest versions that run the programs of one backend; null where the backend does not run at all."""

    executorch: str | None = Field(None, pattern=r"^\d+(\.\d+)*$", description="ExecuTorch's runtime, MAJOR.MINOR.")
    ios: str | None = Field(None, pattern=r"^\d+(\.\d+)*$", description="iOS, MAJOR.MINOR.")
    android_api: int | None = Field(None, ge=1, description="Android's API level.")


def requirements_of(
    backends: Collection[Backend], executorch_version: str, coreml_target: str
) -> dict[Backend, Requirements]:
    """Returns what the programs of each backend need.

    Args:
        backends: the backends that the bundle has programs for.
        executorch_version: the version that wrote the `.pte` files. ExecuTorch guarantees nothing for older runtimes
            (`runtime/COMPATIBILITY.md`), and a `.pte` of 1.5.1 does not name the version that it needs.
        coreml_target: the oldest system that the Core ML programs are for, a name in `coremltools.target` ("iOS18").
    """
    executorch, coreml_ios = minor_of(executorch_version), f"{coreml_target.removeprefix('iOS')}.0"
    delegate_ios = EXECUTORCH_IOS if is_older(coreml_ios, EXECUTORCH_IOS) else coreml_ios
    requirements: dict[Backend, Requirements] = {
        "executorch": Requirements(executorch=executorch, ios=EXECUTORCH_IOS, android_api=EXECUTORCH_ANDROID_API),
        "coreml": Requirements(ios=coreml_ios),
        "executorch-coreml": Requirements(executorch=executorch, ios=delegate_ios),
    }
    return {backend: needed for backend, needed in requirements.items() if backend in backends}


def release_of(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version without its suffix: (1, 5, 1) for "1.5.1+cpu" and (1, 5, 0) for "1.5.0a0".

    Raises:
        ValueError: the version does not start with a number.
    """
    match = re.match(r"\d+(\.\d+)*", version)
    if match is None:
        raise ValueError(f"{version!r} is not a version")
    return tuple(int(number) for number in match.group().split("."))


def minor_of(version: str) -> str:
    """Returns MAJOR.MINOR of a version: "1.4" for "1.4.1"."""
    major, minor = (*release_of(version), 0)[:2]
    return f"{major}.{minor}"


def is_older(version: str, required: str) -> bool:
    """Whether a version comes before the required one: "1.9" is older than "1.10", "1.4.1" is not older than "1.4".

    Raises:
        ValueError: one of the two does not start with a number.
    """
    numbers, required_numbers = release_of(version), release_of(required)
    length = max(len(numbers), len(required_numbers))
    return _padded(numbers, length) < _padded(required_numbers, length)


def _padded(numbers: tuple[int, ...], length: int) -> tuple[int, ...]:
    return numbers + (0,) * (length - len(numbers))


def require_executorch(required: str | None, installed: str | None, file: Path) -> None:
    """Refuses a runtime that is older than a bundle's programs.

    Args:
        required: the oldest version that runs the programs; None where the bundle does not say.
        installed: the version of the runtime; None where it is unknown.
        file: the manifest, for the message.

    Raises:
        UserError: the runtime is too old.
    """
    if required is not None and installed is not None and is_older(installed, required):
        raise UserError(
            f"the bundle's programs need ExecuTorch {required} or newer, and {installed} is installed; "
            "install a newer version, or export the bundle again with this one",
            file=file,
            field="requires",
        )
