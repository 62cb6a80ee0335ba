"""Counts what an app grows by: the files that it ships of a bundle, and the libraries that run them."""

from __future__ import annotations

import zlib
from pathlib import Path

from pydantic import Field

from pipeline.bundle.manifest import read_manifest
from pipeline.bundle.slicing import Runtime, Slice, Target, available_slices, plan_slice
from pipeline.names import Backend
from pipeline.support.document import Document
from quantize.runtime_sizes import LIBRARIES, RuntimeLibrary

CHUNK_BYTES = 1 << 20


class Growth(Document):
    """What an app for one platform grows by, in bytes.

    Attributes:
        target, runtime, backend: as `pocketbert slice` takes and chooses them.
        model_bytes: the slice as it lies in the app.
        model_download_bytes: its files compressed one by one, as stores and APKs compress them (deflate, level 6).
        libraries: what the app needs to run it, with sources; empty where the system has it.
        installed_bytes: model and libraries on the phone; None where a library's size is unknown.
        download_bytes: model and libraries compressed; None where a library's size is unknown.
    """

    target: Target
    runtime: Runtime
    backend: Backend
    model_bytes: int
    model_download_bytes: int
    libraries: list[RuntimeLibrary]
    installed_bytes: int | None = Field(description="model and libraries; null where a library's size is unknown")
    download_bytes: int | None = Field(description="the same compressed; null where a library's size is unknown")


def growth_of(bundle: str | Path) -> list[Growth]:
    """Returns what an app grows by, for each platform and runtime that the bundle has programs for.

    Raises:
        UserError: the folder is not a whole bundle.
    """
    bundle = Path(bundle)
    compressed: dict[str, int] = {}  # the slices share most of their files
    growths = []
    for target, runtime in available_slices(read_manifest(bundle, check_files=False)):
        plan = plan_slice(bundle, target, runtime)
        download = _compressed_bytes(bundle, plan, compressed)
        libraries = list(LIBRARIES[target, runtime])
        growths.append(
            Growth(
                target=target,
                runtime=runtime,
                backend=plan.backend,
                model_bytes=plan.bytes,
                model_download_bytes=download,
                libraries=libraries,
                installed_bytes=_total(plan.bytes, [library.installed_bytes for library in libraries]),
                download_bytes=_total(download, [library.download_bytes for library in libraries]),
            )
        )
    return growths


def _total(model: int, libraries: list[int | None]) -> int | None:
    """Returns the sum, or None where one of the numbers is unknown."""
    known = [size for size in libraries if size is not None]
    return model + sum(known) if len(known) == len(libraries) else None


def _compressed_bytes(bundle: Path, plan: Slice, done: dict[str, int]) -> int:
    """Returns the compressed size of a slice's files; `done` holds those that were compressed before."""
    for path in plan.files:
        if path not in done:
            done[path] = _deflated(bundle / path)
    return sum(done[path] for path in plan.files) + len(zlib.compress(plan.manifest.encode("utf-8")))


def _deflated(file: Path) -> int:
    compressor, size = zlib.compressobj(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            size += len(compressor.compress(chunk))
    return size + len(compressor.flush())
