"""The command `verify`: checks a bundle, or evaluates one Core ML package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from pipeline.commands.completion import complete_recipe_or_bundle
from pipeline.commands.options import AsJson, Out, Settings, print_json, print_lines
from pipeline.commands.recipes import means_recipe, run_recipe
from pipeline.support.errors import UserError
from pipeline.support.progress import output, progress

if TYPE_CHECKING:
    from pipeline.verify.verify import Verification


def verify(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|RECIPE|PACKAGE",
            autocompletion=complete_recipe_or_bundle,
            help="A bundle; a recipe, whose bundle is checked against its model, too; "
            "or one .mlpackage or .pte for Core ML.",
        ),
    ],
    settings: Settings = None,
    out: Out = None,
    inputs: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="For a package: .npz or JSON with its inputs; random ones by default."),
    ] = None,
    function: Annotated[
        Optional[str], typer.Option(metavar="NAME", help="For a package: the function to run; all by default.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="For a package: whether to show the outputs in float32 or in float16.")
    ] = "float32",
    outputs: Annotated[
        Optional[Path], typer.Option(metavar="FILE.npz", help="For a package: write its outputs to this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Checks a bundle against its model, or runs a Core ML package.

    Core ML programs are evaluated without Core ML, and on a Mac in Core ML itself, too. The exit code is 1 when a
    program is out of tolerance, or when an output of a package is not finite.
    """
    if target.suffix in (".mlpackage", ".pte"):
        return verify_package(target, inputs, function, precision, outputs, as_json)
    for name, value in (("--inputs", inputs), ("--function", function), ("--outputs", outputs)):
        if value is not None:
            raise UserError("goes with a Core ML package; give the .mlpackage or .pte itself", file=target, field=name)
    verification = verify_target(target, settings, out)
    if as_json:
        print_json(verification)
    else:
        print_verification(verification)
    if message := verification.failure():
        print(message, file=sys.stderr)
        raise typer.Exit(1)


def verify_target(target: Path, settings: list[str] | None, out: Path | None) -> Verification:
    """Checks a bundle, or the bundle of a recipe after running its stages up to export."""
    from pipeline.bundle.opening import find_bundle
    from pipeline.run.stages.verify import verify_results
    from pipeline.verify.verify import verify as verify_bundle

    if means_recipe(target, settings, out):
        results = run_recipe(target, settings, out, "export").results
        with progress() as on_step:
            return verify_results(results, on_step)
    with progress() as on_step:
        return verify_bundle(find_bundle(target), on_step=on_step)


def print_verification(verification: Verification) -> None:
    """Prints the checks as a table, then the warnings and what Core ML did."""
    from pipeline.report.terminal import checks_table, mac_lines, warning_lines

    output().print(checks_table(verification.checks))
    print_lines(warning_lines(verification.warnings))
    print_lines(mac_lines(verification.mac))


def verify_package(
    package: Path, inputs: Path | None, function: str | None, precision: str, outputs: Path | None, as_json: bool
) -> None:
    """Evaluates one saved package; the arguments are those of `verify`."""
    from pipeline.report.terminal import fault_lines, package_table, warning_lines
    from pipeline.verify.evaluator.examine import examine_package
    from pipeline.verify.neural_engine import lint

    if precision not in ("float32", "float16"):
        raise UserError(f"{precision!r} is not known; take float32 or float16", field="--precision")
    shown: Literal["float32", "float16"] = "float16" if precision == "float16" else "float32"
    report, loaded = examine_package(package, inputs, function, shown)
    warnings = lint(loaded)
    if outputs is not None:
        report.save(outputs)
    if as_json:
        print_json({**report.to_json(), "warnings": [warning.model_dump(mode="json") for warning in warnings]})
    else:
        output().print(package_table(report))
        print_lines(fault_lines(report))
        if inputs is not None:
            for function_name, values in report.values.items():
                for output_name, value in values.items():
                    print(f"{function_name} {output_name}: {value}")
        print_lines(warning_lines(warnings))
    if not report.passed:
        raise typer.Exit(1)
