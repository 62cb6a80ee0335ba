"""The command line program `pocketbert`. Each command is a function in `pipeline.commands`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.table import Table

from pipeline import __version__
from pipeline.commands import bench, bundles, predict, recipes, verify
from pipeline.commands.options import AsJson, print_json
from pipeline.support import processes
from pipeline.support.errors import UserError
from pipeline.support.progress import output

app = typer.Typer(
    help="Distills a BERT into a small model with an exit after every layer, and writes it as a bundle that runs on a "
    "phone.\n\nStart with: pocketbert run demo-classification",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def doctor(as_json: AsJson = False) -> None:
    """Shows what this machine can build for and reach.

    Lists the packages, the weights, the accelerators and the devices, and how to get what is missing.
    """
    from pipeline.doctor import examine

    findings = examine()
    if as_json:
        print_json([finding.to_dict() for finding in findings])
        return
    table = Table("", "what", "found")
    for finding in findings:
        table.add_row("ok" if finding.ok else "--", finding.what, finding.summary)
    output().print(table)


# In the order in which `pocketbert --help` lists them.
for command in (
    recipes.run,
    recipes.init,
    recipes.finetune,
    recipes.pretrain,
    recipes.distill,
    recipes.exits,
    recipes.quantize,
    recipes.sensitivity,
    recipes.export,
    recipes.report,
    recipes.ablate,
    verify.verify,
    predict.predict,
    bundles.evaluate,
    bundles.study,
    bench.bench,
    bundles.size,
    doctor,
):
    app.command()(command)


def print_version(wanted: bool) -> None:
    """Prints the version and ends the program, if the option is given."""
    if wanted:
        print(f"pocketbert {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Declares the options that go before the command."""


def main() -> None:
    """Runs the command.

    An error of the user is one line on stderr and exit code 2. An interrupted run continues with the same command.
    """
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except processes.FailedElsewhere:  # another process has said why
        sys.exit(2)
    except KeyboardInterrupt:
        if processes.is_main():
            print("interrupted; the same command continues where it was", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
