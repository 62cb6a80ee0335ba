"""What the shell's completion offers. Where it offers nothing, the shell completes the names of files.

It looks at names alone, and imports nothing that takes long: the shell waits for it at each press of the key.
"""

from __future__ import annotations

from glob import escape, glob
from importlib import resources
from pathlib import Path

SPEEDS = ("exact", "balanced", "fast", "full")


def complete_recipe(incomplete: str) -> list[str]:
    """Returns the names of built-in recipes that begin with the text."""
    folder = Path(str(resources.files("pocketbert") / "recipes"))
    return sorted(path.stem for path in folder.glob("*.toml") if path.stem.startswith(incomplete))


def complete_bundle(incomplete: str) -> list[str]:
    """Returns the folders, also in `runs`, that begin with the text and are bundles or runs with a bundle."""
    places = {*glob(f"{escape(incomplete)}*"), *glob("runs/*")}
    return sorted(
        place
        for place in places
        if place.startswith(incomplete)
        and any((Path(place) / inner / "manifest.json").is_file() for inner in (".", "bundle"))
    )


def complete_recipe_or_bundle(incomplete: str) -> list[str]:
    """Returns what `complete_recipe` and `complete_bundle` offer."""
    return complete_recipe(incomplete) + complete_bundle(incomplete)


def complete_speed(incomplete: str) -> list[str]:
    """Returns the named speeds that begin with the text. After a comma another one begins."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{speed}" for speed in SPEEDS if speed.startswith(last)]


def complete_data(incomplete: str) -> list[str]:
    """Returns the name of the demo data if it begins with the text."""
    return ["demo"] if "demo".startswith(incomplete) else []
