"""Arguments and options that several commands share, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from pipeline.commands.completion import complete_bundle, complete_data, complete_recipe, complete_speed

RecipeFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE|DATA",
        autocompletion=complete_recipe,
        help="A recipe file, a built-in recipe such as sst2, or a data file such as train.csv.",
    ),
]
BundleFolder = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE",
        autocompletion=complete_bundle,
        help="A bundle's folder; or a run with one, as its folder runs/NAME or as NAME.",
    ),
]
DataSource = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        autocompletion=complete_data,
        help='A file with labels, the name of a hub data set, or "demo".',
    ),
]
Settings = Annotated[
    Optional[list[str]],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe, for example data.train=train.tsv. Can be repeated.",
    ),
]
Out = Annotated[
    Optional[Path], typer.Option("--out", metavar="DIR", help="Folder for the results; by default runs/NAME.")
]
DevSource = Annotated[
    Optional[str],
    typer.Option("--dev", metavar="DATA", help="Examples to measure on; for a data file by default a part of it."),
]
TaskName = Annotated[
    Optional[str],
    typer.Option(
        "--task", metavar="TASK", help="classification, regression or qa; told from the data file by default."
    ),
]
Limit = Annotated[Optional[int], typer.Option(min=1, help="Use only the first N examples.")]
TextColumn = Annotated[
    Optional[str], typer.Option("--text-column", help="Column of the text; guessed from the header by default.")
]
PairColumn = Annotated[Optional[str], typer.Option("--pair-column", help="Column of the second text of a pair.")]
LabelColumn = Annotated[Optional[str], typer.Option("--label-column", help="Column of the label.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
Speed = Annotated[
    Optional[str],
    typer.Option(
        "--speed",
        metavar="S",
        autocompletion=complete_speed,
        help="exact, balanced, fast or full (every exit); or a number: stop at the first exit whose uncertainty is "
        "below it (0: never). The default is exact.",
    ),
]


def print_json(value: Any) -> None:
    """Prints JSON on stdout. `value` has `to_json`, is a pydantic model, or is plain data."""
    if hasattr(value, "to_json"):
        value = value.to_json()
    elif hasattr(value, "model_dump"):
        value = value.model_dump()
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_lines(lines: Iterable[str]) -> None:
    """Prints each line on stdout."""
    for line in lines:
        print(line)
