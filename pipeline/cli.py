"""The command `pocketbert`: one verb a stage, no logic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional, get_args

import typer
from rich.table import Table

from pipeline import __version__
from pipeline.support import processes
from pipeline.support.errors import UserError
from pipeline.support.progress import console, output, progress

app = typer.Typer(
    help="A BERT, distilled, with an exit after every layer, as a bundle that a phone runs.\n\n"
    "Start with: pocketbert run recipes/demo-classification.toml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, for example recipes/sst2.toml.")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, the folder OUT/bundle of a run.")]
Settings = Annotated[
    Optional[list[str]],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Overrides a key of the recipe, for example data.train=train.tsv; may be repeated.",
    ),
]
Out = Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="Where results go; runs/NAME by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON alone on stdout.")]
Speed = Annotated[
    Optional[str],
    typer.Option(
        "--speed",
        metavar="S",
        help="exact, balanced, fast, or an uncertainty below which to stop (0: never); exact by default.",
    ),
]


def emit(value) -> None:
    """Prints JSON on stdout; `value` knows its JSON form, is a pydantic model, or plain data."""
    if hasattr(value, "to_json"):
        value = value.to_json()
    elif hasattr(value, "model_dump"):
        value = value.model_dump()
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_lines(lines: list[str]) -> None:
    for line in lines:
        print(line)


def run_stage(recipe_file: Path, settings: list[str] | None, out: Path | None, last: str):
    """Runs all stages up to `last` and returns the run; the main process of several does, for the others that is all."""
    from pipeline.recipe import load_recipe
    from pipeline.run.engine import Run

    with processes.together():
        recipe = load_recipe(recipe_file, settings or [])
        run = Run(recipe, out or Path("runs") / recipe.name)
        run.upto(last)
    if not processes.is_main():
        raise typer.Exit
    return run


@app.command()
def run(recipe: RecipeFile, settings: Settings = None, out: Out = None) -> None:
    """Every stage, from data and weights to a measured bundle. A second run redoes only what changed; a killed one continues."""
    from pipeline.report.terminal import print_summary

    print_summary(run_stage(recipe, settings, out, "report"))


def stage_command(name: str, text: str):
    def command(recipe: RecipeFile, settings: Settings = None, out: Out = None) -> None:
        finished = run_stage(recipe, settings, out, name)
        console.print(f"{name}: {finished.path(name)}")

    command.__doc__ = text + " Stages that it needs run first, unless they are done."
    app.command(name)(command)


stage_command("finetune", "Fine-tunes the teacher.")
stage_command("pretrain", "Distills the student's encoder on plain text, before any task.")
stage_command("distill", "Distills the student from the teacher.")
stage_command("exits", "Trains the exit heads on the frozen student.")


@app.command()
def quantize(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|CHECKPOINT", help="A recipe, or a fine-tuned BERT or DistilBERT: a folder, or a hub name."
        ),
    ],
    settings: Settings = None,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", metavar="DIR", help="Results of the recipe; or the checkpoint's bundle, a new folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Of a checkpoint: print JSON alone on stdout.")] = False,
) -> None:
    """Quantizes the student and calibrates the named speeds on it; stages that it needs run first. Or writes a checkpoint's bundle as it stands."""
    if Path(target).suffix == ".toml":
        console.print(f"quantize: {run_stage(Path(target), settings, out, 'quantize').path('quantize')}")
        return
    from pipeline.report.terminal import quantized_table
    from pipeline.run.checkpoint import quantize_checkpoint

    with progress() as on_step:
        result = quantize_checkpoint(target, settings or [], out, on_step)
    if as_json:
        emit(result)
    else:
        output().print(quantized_table(result))


@app.command()
def sensitivity(
    recipe: RecipeFile,
    settings: Settings = None,
    out: Out = None,
    schemes: Annotated[str, typer.Option(help="Schemes to try on each matrix.")] = "int8,int4",
    as_json: AsJson = False,
) -> None:
    """What each matrix loses by fewer bits when it alone has them, on the calibration split. Stages that it needs run first."""
    from pipeline.report.terminal import sensitivity_table
    from pipeline.run.engine import sensitivity as measure

    finished = run_stage(recipe, settings, out, "exits")
    with progress() as on_step:
        result, _ = measure(finished, [part.strip() for part in schemes.split(",") if part.strip()], on_step)
    if as_json:
        emit(result)
    else:
        output().print(sensitivity_table(result))


stage_command("export", "Writes the bundle.")
stage_command("report", "Writes the report.")


@app.command()
def ablate(recipe: RecipeFile, settings: Settings = None, out: Out = None, as_json: AsJson = False) -> None:
    """What each term of the losses is worth: the student again without it, and from random weights. A killed one continues."""
    from pipeline.recipe import load_recipe
    from pipeline.run.ablate import ablate as run_ablation
    from pipeline.run.ablate import ablation_table

    with processes.together():
        loaded = load_recipe(recipe, settings or [])
        ablation = run_ablation(loaded, out or Path("runs") / loaded.name)
    if not processes.is_main():
        raise typer.Exit
    if as_json:
        emit(ablation)
    else:
        output().print(ablation_table(ablation))


@app.command()
def verify(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|RECIPE|PACKAGE",
            help="A bundle, a recipe whose bundle to check, an .mlpackage, or a .pte for Core ML.",
        ),
    ],
    settings: Settings = None,
    out: Out = None,
    inputs: Annotated[
        Optional[Path],
        typer.Option(
            metavar="FILE", help="For a package: .npz or JSON with its inputs; seeded random ones without it."
        ),
    ] = None,
    function: Annotated[
        Optional[str], typer.Option(metavar="NAME", help="For a package: the function to run; all without it.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="For a package: whose outputs to show, float32's or float16's.")
    ] = "float32",
    outputs: Annotated[
        Optional[Path], typer.Option(metavar="FILE.npz", help="For a package: write its outputs there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Checks every program of a bundle against the model it came from, or evaluates one Core ML package, without Core ML.

    On a Mac a bundle's programs run in Core ML itself, too. Exits with 1 when a program is out of tolerance, or a package's output is not finite.
    """
    from pipeline.report.terminal import checks_table, mac_lines, warning_lines
    from pipeline.verify.checks import to_json
    from pipeline.verify.neural_engine import lint_bundle
    from pipeline.verify.on_mac import verify_on_mac
    from pipeline.verify.verify import failure, verify_bundle

    if target.suffix in (".mlpackage", ".pte"):
        return verify_package(target, inputs, function, precision, outputs, as_json)
    for name, value in (("--inputs", inputs), ("--function", function), ("--outputs", outputs)):
        if value is not None:
            raise UserError("goes with a Core ML package; give the .mlpackage or .pte itself", file=target, field=name)
    bundle = target if target.suffix != ".toml" else run_stage(target, settings, out, "export").path("export")
    with progress() as on_step:
        checks = verify_bundle(bundle, on_step)
        of_mac, mac = verify_on_mac(bundle, on_step)
        checks += of_mac
    warnings = lint_bundle(bundle)
    if as_json:
        emit(to_json(checks, warnings, mac))
    else:
        output().print(checks_table(checks))
        print_lines(warning_lines(warnings))
        print_lines(mac_lines(mac))
    if said := failure(checks):
        print(said, file=sys.stderr)
        raise typer.Exit(1)


def verify_package(
    package: Path, inputs: Path | None, function: str | None, precision: str, outputs: Path | None, as_json: bool
) -> None:
    """`verify` of one saved package."""
    from pipeline.report.terminal import fault_lines, package_table, warning_lines
    from pipeline.verify.evaluator.package import examine_package
    from pipeline.verify.neural_engine import lint

    if precision not in ("float32", "float16"):
        raise UserError(f"{precision!r} is not known; take float32 or float16", field="--precision")
    report, loaded = examine_package(package, inputs, function, precision)
    warnings = lint(loaded)
    if outputs is not None:
        report.save(outputs)
    if as_json:
        emit({**report.to_json(), "warnings": [warning.to_json() for warning in warnings]})
    else:
        output().print(package_table(report))
        print_lines(fault_lines(report))
        if inputs is not None:
            for name, of in report.values.items():
                for output_name, value in of.items():
                    print(f"{name} {output_name}: {value}")
        print_lines(warning_lines(warnings))
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def predict(
    bundle: BundleFolder,
    text: Annotated[Optional[str], typer.Option(help="The text to classify, or to predict a number for.")] = None,
    text_pair: Annotated[Optional[str], typer.Option("--text-pair", help="The second text of a pair.")] = None,
    question: Annotated[Optional[str], typer.Option(help="The question.")] = None,
    passage: Annotated[
        Optional[str], typer.Option(help="The passage that holds the answer, or @FILE to read it from a file.")
    ] = None,
    speed: Speed = None,
    as_json: AsJson = False,
) -> None:
    """One answer, with the exit taken, the uncertainty at every exit that ran, and the milliseconds it took."""
    from pipeline.bundle.opening import Bundle
    from pipeline.runtime.runner import Runner

    opened = Bundle.open(bundle)
    runner = Runner(opened)
    task = runner.task
    example = task.example_from_request(
        text, text_pair, question, None if passage is None else read_text(passage), bundle
    )
    runner.predict(example, speed)  # the first run loads the programs
    result = runner.predict(example, speed)
    if as_json:
        emit(result)
    else:
        score = f"score {result.score:.3f}, " if hasattr(result, "score") else ""
        unsure = ", ".join(f"{value:.2f}" for value in result.uncertainty)
        print(
            f"{task.shown_answer(result)}  ({score}{result.depth} of {opened.manifest.segments} segments, uncertainty {unsure}, {result.latency_ms:.1f} ms)"
        )


def read_text(value: str) -> str:
    """The value itself, or the contents of the file that "@FILE" names."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=value[1:]) from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 (byte {error.start})", file=value[1:]) from None


@app.command()
def evaluate(
    bundle: BundleFolder,
    data: Annotated[str, typer.Argument(metavar="DATA", help='A labelled file, a hub data set, or "demo".')],
    speed: Speed = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Only the first N examples.")] = None,
    text: Annotated[
        Optional[str], typer.Option("--text-column", help="The text's column; guessed when absent.")
    ] = None,
    text_pair: Annotated[Optional[str], typer.Option("--pair-column", help="The second text's column.")] = None,
    label: Annotated[Optional[str], typer.Option("--label-column", help="The label's column.")] = None,
    threads: Annotated[
        Optional[int],
        typer.Option(min=1, help="Of the runtime; as many as physical cores without it. Short texts want 1."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Runs the bundle's own programs over a labelled file: accuracy, EM/F1 or correlations, depth, latency; --speed takes several."""
    from pipeline.bundle.opening import Bundle, default_speed
    from pipeline.data.files import read_examples
    from pipeline.report.terminal import evaluation_table
    from pipeline.runtime.evaluate import evaluate as run_evaluation
    from pipeline.tasks import get_task

    opened = Bundle.open(bundle)
    task = opened.manifest.task
    examples = (
        get_task(task).load_demo()[1]
        if data == "demo"
        else read_examples(data, task, text=text, text_pair=text_pair, label=label)
    )
    speeds = [part.strip() for part in (speed or default_speed(opened.manifest)).split(",") if part.strip()]
    with progress() as on_step:
        evaluation = run_evaluation(
            opened, examples, speeds, limit=limit, on_progress=on_step, threads=threads, source=data
        )
    if as_json:
        emit(evaluation)
    else:
        output().print(evaluation_table(evaluation))


@app.command()
def study(
    bundle: BundleFolder,
    data: Annotated[str, typer.Argument(metavar="DATA", help='A labelled file, a hub data set, or "demo".')],
    limit: Annotated[Optional[int], typer.Option(min=1, help="Only the first N examples.")] = None,
    text: Annotated[
        Optional[str], typer.Option("--text-column", help="The text's column; guessed when absent.")
    ] = None,
    text_pair: Annotated[Optional[str], typer.Option("--pair-column", help="The second text's column.")] = None,
    label: Annotated[Optional[str], typer.Option("--label-column", help="The label's column.")] = None,
    as_json: AsJson = False,
    out: Annotated[
        Optional[Path], typer.Option("--out", metavar="DIR", help="Write the page study.html and study.json there.")
    ] = None,
) -> None:
    """What each exit is worth: score against depth and operations at every threshold and measure of uncertainty, on any labelled data."""
    from pipeline.bench.study import study_bundle
    from pipeline.bundle.opening import Bundle
    from pipeline.data.files import read_examples
    from pipeline.report.terminal import study_tables
    from pipeline.tasks import get_task

    opened = Bundle.open(bundle)
    task = opened.manifest.task
    examples = (
        get_task(task).load_demo()[1]
        if data == "demo"
        else read_examples(data, task, text=text, text_pair=text_pair, label=label)
    )
    with progress() as on_step:
        result = study_bundle(opened, examples, limit, on_step, source=data)
    if out is not None:
        from pipeline.report.study_page import write_study

        console.print(f"page: {write_study(result, opened.manifest.name, Path(data).name, out)}")
    if as_json:
        emit(result)
    else:
        output().print(*study_tables(result))


@app.command()
def bench(
    target: Annotated[
        Optional[Path],
        typer.Argument(metavar="[BUNDLE|RECIPE]", help="A bundle folder, or a recipe whose bundle to measure."),
    ] = None,
    settings: Settings = None,
    out: Out = None,
    device: Annotated[str, typer.Option(help="host; android, ios and coreml come with the apps.")] = "host",
    reference: Annotated[
        str, typer.Option(help="bert-base, same-width (12 layers as wide as the bundle's) or none.")
    ] = "bert-base",
    reference_length: Annotated[
        int, typer.Option(min=8, max=512, help="What the reference pads every input to.")
    ] = 128,
    lengths: Annotated[str, typer.Option(help="Lengths in tokens.")] = "16,32,64,128",
    repeats: Annotated[int, typer.Option(min=3, help="Timed runs of each.")] = 15,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    peers: Annotated[bool, typer.Option("--peers", help="Measure other runtimes on the same weights, too.")] = False,
    weights: Annotated[
        Optional[Path],
        typer.Option(metavar="DIR", help="The peers' weights, OUT/exits of the bundle's run; found beside OUT/bundle."),
    ] = None,
    shape: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", help="Instead of a bundle: distilbert or minilm, int8, with random weights."),
    ] = None,
    file: Annotated[
        Optional[Path], typer.Option("--json", metavar="FILE", help="Write JSON to FILE; - for stdout.")
    ] = None,
    plot: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Write a plot of latency by length to FILE, as SVG.")
    ] = None,
) -> None:
    """Latency, load time, peak memory and size on this machine, against BERT-base and peers, alternating, each in its own process."""
    from pipeline.bench.host import Reference, bench_host
    from pipeline.bench.shapes import shape_bundle
    from pipeline.report.plots import systems_plot
    from pipeline.report.terminal import bench_table
    from pipeline.support.workspace import write_text

    if device != "host":
        raise UserError(f"{device!r} cannot be measured by this version; take host", field="--device")
    if reference not in get_args(Reference):
        raise UserError(
            f"{reference!r} is not known; take {', '.join(get_args(Reference)[:-1])} or none", field="--reference"
        )
    try:
        chosen = [int(part) for part in lengths.split(",")]
    except ValueError:
        raise UserError(f"{lengths!r} is not a list of numbers such as 16,32,64", field="--lengths") from None
    if (target is None) == (shape is None):
        raise UserError("give a bundle or a recipe to measure, or a shape with --shape, one of them")
    if weights is not None and not peers:
        raise UserError("are the peers' weights; give --peers, too", field="--weights")
    if shape is not None:
        with progress() as on_step:
            made = shape_bundle(shape, on_step)
        bundle, beside = made / "bundle", made / "exits"
    elif target.suffix == ".toml":
        run = run_stage(target, settings, out, "export")
        bundle, beside = run.path("export"), run.path("exits")
    else:
        bundle, beside = target, target.resolve().parent / "exits"
    with progress() as on_step:
        report = bench_host(
            bundle,
            chosen,
            repeats,
            threads,
            reference,
            on_step,
            reference_length=reference_length,
            weights=(weights or beside) if peers else None,
        )
    try:
        if file not in (None, Path("-")):
            write_text(written := file, report.model_dump_json(indent=2) + "\n")
        if plot is not None:
            write_text(written := plot, systems_plot(report))
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", file=written) from None
    for system, why in report.left_out.items():
        console.print(f"{system} is left out: {why}")
    if file == Path("-"):
        emit(report)
    else:
        output().print(bench_table(report))
        if growth := report.growth():
            output().print(f"Time of the bundle at full depth over the length. {growth.sentence()}")


@app.command()
def size(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="One or more bundles.")],
    as_json: AsJson = False,
) -> None:
    """Bytes by part, against fp32, BERT-base and the 207 MB of the DistilBERT paper's app."""
    from pipeline.report.terminal import size_table
    from quantize.size import size_of

    reports = [size_of(bundle) for bundle in bundles]
    if as_json:
        emit(reports[0] if len(reports) == 1 else [report.model_dump() for report in reports])
        return
    for bundle, report in zip(bundles, reports):
        output().print(size_table(bundle, report))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Which targets and devices this machine can build for and reach, and what is missing."""
    from pipeline.doctor import examine

    findings = examine()
    if as_json:
        emit([finding.to_dict() for finding in findings])
        return
    table = Table("", "what", "found")
    for finding in findings:
        table.add_row(
            "ok" if finding.ok else "--",
            finding.what,
            finding.found if finding.ok else f"{finding.found}; {finding.remedy}",
        )
    output().print(table)


def version(show: bool) -> None:
    if show:
        print(f"pocketbert {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command; a user's mistake is one line on stderr and exit code 2, an interruption says that the run continues."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except processes.Elsewhere:
        sys.exit(2)
    except KeyboardInterrupt:
        if processes.is_main():
            print("interrupted; the same command continues where it was", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
