"""Shows what an app grows by, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from pipeline.report.wording import MEGABYTE
from quantize.growth import Growth
from quantize.runtime_sizes import RuntimeLibrary

PLATFORMS = {"android": "Android", "ios": "iOS"}
RUNTIME_NAMES = {
    "executorch": "ExecuTorch",
    "coreml": "Core ML",
    "executorch-coreml": "ExecuTorch, Core ML delegate",
}


def growth_table(growths: Sequence[Growth]) -> Table:
    """Returns one row for each platform and runtime, in megabytes; `?` is unknown."""
    table = Table("app for", "runtime", "model MB", "libraries MB", "installed MB", "download MB")
    table.title, table.title_justify = "what an app grows by", "left"
    for growth in growths:
        libraries = None if growth.installed_bytes is None else growth.installed_bytes - growth.model_bytes
        table.add_row(
            PLATFORMS[growth.target],
            RUNTIME_NAMES[growth.backend],
            megabytes(growth.model_bytes),
            megabytes(libraries),
            megabytes(growth.installed_bytes),
            megabytes(growth.download_bytes),
        )
    return table


def growth_lines(growths: Sequence[Growth]) -> Iterator[str]:
    """Returns a line for each library with its sizes and where they come from."""
    libraries: dict[str, RuntimeLibrary] = {library.name: library for row in growths for library in row.libraries}
    for library in libraries.values():
        sizes = (
            "size unknown here"
            if library.installed_bytes is None
            else f"{megabytes(library.installed_bytes)} MB, compressed {megabytes(library.download_bytes)} MB"
        )
        yield f"{library.name}, {library.version}: {sizes}. Source: {library.source} ({library.date}). {library.note}"


def megabytes(size: int | None) -> str:
    """Writes bytes in megabytes with one decimal, or `?` for an unknown size."""
    return "?" if size is None else f"{size / MEGABYTE:.1f}"
