"""Tells whether Core ML itself can run on this machine."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.util import find_spec

from pipeline.support.quiet import import_quietly

# The first macOS that reads each specification version.
FIRST_MACOS: dict[int, tuple[int, ...]] = {7: (13,), 8: (14,), 9: (15,), 10: (26,)}
FIRST_MACOS_WITH_PLANS = (14, 4)


@dataclass(frozen=True)
class Machine:
    """What decides whether Core ML runs here.

    Attributes:
        system: as `platform.system()` names it.
        macos: the version of macOS; empty on other systems.
        native: whether coremltools includes its bridge to Core ML.
    """

    system: str
    macos: tuple[int, ...] = ()
    native: bool = False

    def obstacle(self, specification_version: int = 0) -> str | None:
        """Returns why programs of a specification version cannot run here, or None if they can."""
        if self.system != "Darwin":
            return f"only macOS has Core ML, this is {self.system}"
        needed = max(FIRST_MACOS_WITH_PLANS, FIRST_MACOS.get(specification_version, ()))
        if specification_version > max(FIRST_MACOS):
            return f"it is not known which macOS reads specification version {specification_version}"
        if self.macos < needed:
            ability = "run these programs" if specification_version else "run and plan programs"
            return f"macOS {dotted(self.macos)} is older than {dotted(needed)}, the first that can {ability}"
        if not self.native:
            return (
                "coremltools is not installed, or without its bridge to Core ML (libcoremlpython); "
                "install its wheel for macOS"
            )
        return None


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def this_machine() -> Machine:
    """Describes the machine that this process runs on."""
    if platform.system() != "Darwin":
        return Machine(platform.system())
    macos = tuple(int(part) for part in platform.mac_ver()[0].split(".") if part.isdigit())
    if find_spec("coremltools") is None:
        return Machine("Darwin", macos)
    import_quietly("coremltools")
    return Machine("Darwin", macos, find_spec("coremltools.libcoremlpython") is not None)
