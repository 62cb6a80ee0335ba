"""The commands that run the stages of a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pipeline.commands.completion import complete_recipe
from pipeline.commands.options import (
    AsJson,
    DataSource,
    DevSource,
    Out,
    RecipeFile,
    Settings,
    TaskName,
    print_json,
    print_lines,
)
from pipeline.schemes import MIX_CHOICES
from pipeline.support import processes
from pipeline.support.progress import console, output, progress

if TYPE_CHECKING:
    from pipeline.run.engine import Run


def run_recipe(
    target: str | Path,
    settings: list[str] | None,
    out: Path | None,
    last: str,
    dev: str | None = None,
    task: str | None = None,
) -> Run:
    """Runs all stages up to `last` and returns the run. With several processes only the main one gets that far."""
    from pipeline.run.engine import open_run

    with processes.together():
        run = open_run(target, settings or [], out, dev, task)
        run.run_up_to(last)
    if not processes.is_main():
        raise typer.Exit
    return run


def run(
    recipe: RecipeFile, settings: Settings = None, out: Out = None, dev: DevSource = None, task: TaskName = None
) -> None:
    """Runs every stage, from data to a measured bundle.

    For a data file it first writes a recipe that fits, as `pocketbert init` does, into the folder of the results. A
    second run repeats only what changed. A run that was killed continues where it was.
    """
    from pipeline.report.terminal import print_summary
    from pipeline.run.stages.report import collect_results

    results = run_recipe(recipe, settings, out, "report", dev, task).results
    print_summary(
        collect_results(results),
        results.stage_seconds(),
        results.examples("dev"),
        results.path("export"),
        results.path("report") / "report.html",
    )


def init(
    data: DataSource,
    dev: DevSource = None,
    task: TaskName = None,
    settings: Annotated[
        Optional[list[str]],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Name a column: data.text, data.text_pair (empty for none) or data.label. Can be repeated.",
        ),
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option("--out", metavar="FILE", help="The recipe to write; by default NAME.toml.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Looks at a data file and writes a recipe that fits it.

    It finds the task, the columns, the labels and the lengths, says what it found, and forecasts how long a run takes.
    """
    from pipeline.run.propose import propose, write_proposal
    from pipeline.run.target import as_task, given_columns

    proposal = propose(data, dev, as_task(task), given_columns(settings or [], others_allowed=False))
    file = out or Path(f"{proposal.recipe.name}.toml")
    write_proposal(proposal, file)
    forecast, following = proposal.forecast(), f"pocketbert run {shlex.quote(str(file))}"
    if as_json:
        print_json(
            proposal.to_json() | {"recipe": str(file), "minutes": round(forecast.total / 60, 1), "next": following}
        )
        return
    print_lines(
        (
            *proposal.findings,
            *(f"warning: {line}" for line in proposal.warnings),
            f"A run takes {forecast.sentence()}.",
            f"Recipe: {file}. Read it, change what you like, then: {following}",
        )
    )


def stage_command(name: str, summary: str) -> Callable[..., None]:
    """Returns the command that runs the stages up to `name`."""

    def command(recipe: RecipeFile, settings: Settings = None, out: Out = None) -> None:
        finished = run_recipe(recipe, settings, out, name)
        console.print(f"{name}: {finished.path(name)}")

    command.__name__ = name
    command.__doc__ = f"{summary} Runs the stages that it needs first, unless they are done."
    return command


finetune = stage_command("finetune", "Trains the teacher on the task.")
pretrain = stage_command("pretrain", "Distills the student on plain text, before any task.")
distill = stage_command("distill", "Distills the student from the teacher.")
exits = stage_command("exits", "Trains the exit heads on the frozen student.")
export = stage_command("export", "Writes the bundle.")
report = stage_command("report", "Writes the page with all measurements.")


def quantize(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|CHECKPOINT",
            autocompletion=complete_recipe,
            help="A recipe; or a fine-tuned BERT or DistilBERT, as a folder or as the name of a hub model.",
        ),
    ],
    settings: Settings = None,
    out: Annotated[
        Optional[Path],
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for the recipe's results; for a checkpoint the folder of its bundle, which must be new.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="For a checkpoint: print the result as JSON, and nothing else, on stdout."),
    ] = False,
) -> None:
    """Quantizes a recipe's student, or a fine-tuned checkpoint.

    For a recipe it also calibrates the named speeds; the stages before run first, unless they are done. A
    checkpoint is not trained further; it becomes a bundle with one exit.
    """
    from pipeline.recipe import is_recipe

    if is_recipe(target) or Path(target).is_file():  # a data file
        console.print(f"quantize: {run_recipe(target, settings, out, 'quantize').path('quantize')}")
        return
    from pipeline.report.terminal import quantized_table
    from pipeline.run.checkpoint import quantize_checkpoint

    with progress() as on_step:
        result = quantize_checkpoint(target, settings or [], out, on_step)
    if as_json:
        print_json(result)
    else:
        output().print(quantized_table(result))


def means_recipe(target: Path, settings: list[str] | None, out: Path | None) -> bool:
    """Returns whether a target that may be a bundle or a recipe is a recipe.

    A built-in recipe and its run have the same name. The run's bundle comes first, unless there are settings for the
    recipe.
    """
    from pipeline.bundle.opening import look_for_bundle
    from pipeline.recipe import is_recipe

    return is_recipe(target) and (bool(settings) or out is not None or look_for_bundle(target) is None)


def sensitivity(
    recipe: RecipeFile,
    settings: Settings = None,
    out: Out = None,
    schemes: Annotated[str, typer.Option(help="Schemes to try on each matrix, separated by commas.")] = ",".join(
        MIX_CHOICES
    ),
    as_json: AsJson = False,
) -> None:
    """Measures the loss from quantizing each matrix alone.

    The measurements are on the calibration split. The stages before run first, unless they are done.
    """
    from pipeline.report.terminal import sensitivity_table
    from pipeline.run.quantizing import student_sensitivity

    results = run_recipe(recipe, settings, out, "exits").results
    with progress() as on_step:
        names = [part.strip() for part in schemes.split(",") if part.strip()]
        sensitivities = student_sensitivity(results, names, on_step)
    if as_json:
        print_json(sensitivities)
    else:
        output().print(sensitivity_table(sensitivities))


def ablate(recipe: RecipeFile, settings: Settings = None, out: Out = None, as_json: AsJson = False) -> None:
    """Measures what each term of the training loss is worth.

    Trains the student again without each term, and once from random weights. An ablation that was killed continues
    where it was.
    """
    from pipeline.report.ablation import ablation_table
    from pipeline.run.ablate import ablate as run_ablation
    from pipeline.run.target import recipe_of

    with processes.together():
        ablation = run_ablation(*recipe_of(recipe, settings or [], out))
    if not processes.is_main():
        raise typer.Exit
    if as_json:
        print_json(ablation)
    else:
        output().print(ablation_table(ablation))
