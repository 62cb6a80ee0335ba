"""The command that lists the keys of a recipe."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from pipeline.commands.options import AsJson, print_json
from pipeline.support.errors import UserError
from pipeline.support.progress import output


def keys(
    word: Annotated[
        str, typer.Argument(metavar="[WORD]", help="List only keys with this word in their name or meaning.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Lists what a recipe can say: every key, its meaning, its type, its limits and its default."""
    from pipeline.recipe.keys import list_keys, nearest_keys

    found = list_keys(word)
    if not found:
        raise UserError(
            f"no key has {word!r} in its name or meaning; the nearest keys are {', '.join(nearest_keys(word))}"
        )
    if as_json:
        print_json([asdict(key) for key in found])
        return
    table = Table("key", "default", "takes", "meaning")
    for key in found:
        takes = ", ".join(part for part in (key.type, key.limits) if part)
        table.add_row(key.key, key.default, takes, key.description)
    output().print(table)
