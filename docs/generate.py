"""Writes the pages that come from the code: the table of schemes, the keys of a recipe, and the Python API."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pocketbert
from pipeline.recipe.keys import Key, list_keys
from pipeline.schemes import SCHEMES, Scheme

EXAMPLE_SHAPE = (384, 384)  # a matrix of MiniLM's attention, to say how many bits a weight takes with its scales


def write_pages(folder: Path) -> None:
    """Writes every generated page into a folder; a page that has not changed is left alone."""
    pages = {"schemes.md": scheme_table(), "recipe-keys.md": keys_page(list_keys()), "python-api.md": api_page()}
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def scheme_table() -> str:
    """Returns one row for each scheme of the catalogue, with what it takes and where it runs."""
    rows = []
    for scheme in SCHEMES.values():
        rows.append(
            [f"`{scheme.name}`", scheme.summary, stored_bits(scheme), executorch_use(scheme), coreml_use(scheme)]
        )
    return table(["scheme", "what it is", "bits a weight, with scales", "ExecuTorch", "Core ML"], rows)


def stored_bits(scheme: Scheme) -> str:
    """Returns the bits that one weight of the example matrix takes, scales included."""
    if scheme.by_matrix:
        return "by budget"
    if scheme.linear is not None:
        stored = scheme.linear.stored_bytes(*EXAMPLE_SHAPE)
    elif scheme.coreml is not None:
        stored = scheme.coreml.stored_bytes(EXAMPLE_SHAPE)
    else:
        raise ValueError(f"scheme {scheme.name} has no target")
    return f"{8 * stored / (EXAMPLE_SHAPE[0] * EXAMPLE_SHAPE[1]):.1f}"


def executorch_use(scheme: Scheme) -> str:
    """Returns which parts of an ExecuTorch program may have the scheme, and the bits of its inputs."""
    if scheme.linear is None:
        return "no"
    bits = scheme.linear.activation_bits
    inputs = "float inputs" if bits is None else f"{bits}-bit inputs"
    return f"layers ({inputs}){' and word table' if scheme.word_table else ''}"


def coreml_use(scheme: Scheme) -> str:
    """Returns the oldest system that runs Core ML programs with the scheme."""
    if scheme.coreml is None or not scheme.coreml.offered:
        return "no"
    return f"from {scheme.coreml.minimum_system.replace('iOS', 'iOS ')} on"


def keys_page(keys: Sequence[Key]) -> str:
    """Returns the page of all recipe keys, one table for each section."""
    text = (
        "# Recipe keys\n\n"
        "A recipe is a TOML file that describes a run. This page is generated from the code.\n"
        "`pocketbert keys WORD` shows the same in a terminal. Any key can be set on the command line:\n"
        "`--set data.train=train.csv`.\n"
    )
    for section, group in groupby(keys, key=lambda key: key.key.rpartition(".")[0]):
        text += f"\n## {section or 'The top level'}\n\n"
        rows = [[f"`{key.key}`", kind(key), f"`{key.default}`", key.description] for key in group]
        text += table(["key", "takes", "default", "meaning"], rows)
    return text


def kind(key: Key) -> str:
    """Returns a key's type and limits in words."""
    return f"{key.type}, {key.limits}" if key.limits else key.type


def api_page() -> str:
    """Returns the page that autodoc fills from the public names of the package `pocketbert`."""
    text = "# Python API\n\nThis page is generated from the docstrings. [Python](../python.md) shows how to use it.\n"
    objects = {name: getattr(pocketbert, name) for name in pocketbert.__all__ if not name.startswith("__")}
    functions = [name for name, value in objects.items() if inspect.isfunction(value)]
    classes = [name for name, value in objects.items() if inspect.isclass(value)]
    for title, kind, names in (("Functions", "autofunction", functions), ("Classes", "autoclass", classes)):
        text += f"\n## {title}\n\n```{{eval-rst}}\n"
        members = "   :members:\n" if kind == "autoclass" else ""
        text += "".join(f".. {kind}:: pocketbert.{name}\n{members}\n" for name in names) + "```\n"
    return text
