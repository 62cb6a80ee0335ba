"""The command `bench`: measures a bundle and its competitors on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, cast, get_args

import typer

from pipeline.commands.completion import complete_recipe_or_bundle
from pipeline.commands.options import Out, Settings, print_json
from pipeline.commands.recipes import means_recipe, run_recipe
from pipeline.support.errors import UserError
from pipeline.support.progress import console, output, progress

if TYPE_CHECKING:
    from pipeline.bench.documents import BenchReport


def bench(
    target: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="[BUNDLE|RECIPE]",
            autocompletion=complete_recipe_or_bundle,
            help="A bundle, or a recipe whose bundle to measure.",
        ),
    ] = None,
    settings: Settings = None,
    out: Out = None,
    device: Annotated[str, typer.Option(help="host, this machine; other devices are measured by their apps.")] = "host",
    reference: Annotated[
        str,
        typer.Option(
            help="The model to compare with: bert-base, same-width (12 layers as wide as the bundle's) or none."
        ),
    ] = "bert-base",
    reference_length: Annotated[
        int, typer.Option(min=8, max=512, help="Tokens to which the reference pads every input.")
    ] = 128,
    lengths: Annotated[
        str, typer.Option(help="Lengths of the inputs in tokens, separated by commas.")
    ] = "16,32,64,128",
    repeats: Annotated[int, typer.Option(min=3, help="Timed runs of each system at each length.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every runtime.")] = 2,
    peers: Annotated[bool, typer.Option("--peers", help="Also measure other runtimes with the same weights.")] = False,
    weights: Annotated[
        Optional[Path],
        typer.Option(
            metavar="DIR",
            help="Weights for the other runtimes: the folder OUT/exits of the run that made the bundle. "
            "By default the folder exits beside the bundle.",
        ),
    ] = None,
    shape: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME",
            help="Measure a model with random int8 weights instead of a bundle: distilbert or minilm.",
        ),
    ] = None,
    file: Annotated[
        Optional[Path], typer.Option("--json", metavar="FILE", help="Write JSON to FILE; - for stdout.")
    ] = None,
    plot: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Write a plot of latency by length to FILE, as SVG.")
    ] = None,
) -> None:
    """Measures latency, memory and size on this machine.

    Compares the bundle with BERT-base and, with --peers, with other runtimes. Also measures the load time. Each system
    runs in its own process, and all of them take turns.
    """
    from pipeline.bench.host import Reference, bench_host

    if device != "host":
        raise UserError(f"{device!r} cannot be measured by this version; take host", field="--device")
    if reference not in get_args(Reference):
        known = ", ".join(get_args(Reference)[:-1])
        raise UserError(f"{reference!r} is not known; take {known} or none", field="--reference")
    token_counts = parse_lengths(lengths)
    if (target is None) == (shape is None):
        raise UserError("give a bundle or a recipe to measure, or a shape with --shape, one of them")
    if weights is not None and not peers:
        raise UserError("are the peers' weights; give --peers, too", field="--weights")
    bundle, exits = bundle_to_measure(target, shape, settings, out)
    with progress() as on_step:
        report = bench_host(
            bundle,
            token_counts,
            repeats,
            threads,
            cast(Reference, reference),  # checked above
            on_step,
            reference_length=reference_length,
            weights=(weights or exits) if peers else None,
        )
    write_files(report, file, plot)
    for system, reason in report.left_out.items():
        console.print(f"{system} is left out: {reason}")
    if file == Path("-"):
        print_json(report)
    else:
        print_tables(report)


def parse_lengths(lengths: str) -> list[int]:
    """Returns the numbers of a list such as "16,32,64". UserError if a part is not a number."""
    try:
        return [int(part) for part in lengths.split(",")]
    except ValueError:
        raise UserError(f"{lengths!r} is not a list of numbers such as 16,32,64", field="--lengths") from None


def bundle_to_measure(
    target: Path | None, shape: str | None, settings: list[str] | None, out: Path | None
) -> tuple[Path, Path]:
    """Returns the bundle to measure and the folder of its float32 weights; makes them for a recipe or a shape."""
    from pipeline.bench.shapes import shape_bundle
    from pipeline.bundle.opening import find_bundle

    if target is None:
        with progress() as on_step:
            made = shape_bundle(shape or "", on_step)
        return made / "bundle", made / "exits"
    if means_recipe(target, settings, out):
        results = run_recipe(target, settings, out, "export").results
        return results.path("export"), results.path("exits")
    bundle = find_bundle(target)
    return bundle, bundle.resolve().parent / "exits"


def write_files(report: BenchReport, file: Path | None, plot: Path | None) -> None:
    """Writes the report as JSON and its plot, where the options ask for them. UserError if a file cannot be written."""
    from pipeline.report.plots import systems_plot
    from pipeline.support.workspace import write_text

    contents = {}
    if file is not None and file != Path("-"):
        contents[file] = report.model_dump_json(indent=2) + "\n"
    if plot is not None:
        contents[plot] = systems_plot(report)
    for path, text in contents.items():
        try:
            write_text(path, text)
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror})", file=path) from None


def print_tables(report: BenchReport) -> None:
    """Prints the measurements, and how the latency of the bundle grows with the length."""
    from pipeline.report.terminal import bench_table

    output().print(bench_table(report))
    if growth := report.growth():
        output().print(f"Time of the bundle at full depth over the length. {growth.sentence()}")
