"""The functions of `pocketbert`. Each does what the command of the same name does, and shows nothing unless asked.

Everything slow is imported inside the functions, so that a function costs only what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.names import Task
from pipeline.support.errors import UserError
from pocketbert.settings import Settings, as_texts

if TYPE_CHECKING:
    from pipeline.report.results import RunResults
    from pipeline.run.propose import Proposal
    from pipeline.runtime.evaluate import Evaluation
    from pipeline.runtime.runner import Runner
    from pipeline.support.progress import OnStep
    from pipeline.verify.verify import Verification
    from quantize.checkpoint import QuantizedCheckpoint


@dataclass(frozen=True)
class FinishedRun:
    """What a run left.

    Attributes:
        folder: the folder with the results of all stages.
        bundle: the bundle in it, which `load` opens.
        report: the page with all measurements, in HTML.
        results: the measurements on that page.
    """

    folder: Path
    bundle: Path
    report: Path
    results: RunResults


def load(bundle: str | Path, threads: int | None = None) -> Runner:
    """Opens a bundle to get answers from it.

    The files of the bundle are checked against their checksums. Programs are loaded when an answer first needs them;
    `Runner.prewarm` loads all of them at once.

    Args:
        bundle: a bundle's folder, the folder of a run ("runs/NAME"), or the bare name of a run in runs/.
        threads: the number of threads of the runtime, which the whole process shares; by default as many as there are
            physical cores. One is best for short texts.

    Raises:
        UserError: there is no bundle, a file of it is missing or altered, or ExecuTorch is too old for it.

    Examples:
        >>> runner = pocketbert.load("runs/reviews")
        >>> runner.labels
        ('negative', 'positive')
        >>> runner.classify("A moving and clever film.").label
        'positive'
    """
    from pipeline.bundle.opening import Bundle, find_bundle
    from pipeline.runtime.runner import Runner

    return Runner(Bundle.open(find_bundle(bundle)), threads)


def quantize(
    checkpoint: str | Path, out: str | Path | None = None, settings: Settings = (), progress: bool = False
) -> QuantizedCheckpoint:
    """Quantizes a fine-tuned BERT or DistilBERT as it stands, without training, into a bundle with one exit.

    Args:
        checkpoint: a folder that `save_pretrained` wrote, or the name of a hub model.
        out: the bundle's folder, which must be new; by default runs/NAME-SCHEME.
        settings: keys of a recipe, as a mapping or as texts "key=value". `pocketbert keys` lists them.
        progress: whether to show the progress on stderr.

    Returns:
        the bundle's folder, its sizes, and how far its answers are from those of the checkpoint.

    Raises:
        UserError: the checkpoint cannot be quantized, a setting is wrong, or `out` is there already.

    Examples:
        >>> result = pocketbert.quantize("my-checkpoint", "my-bundle", {"quantize.scheme": "int8"})
        >>> result.scheme, result.file_bytes < result.fp32_bytes
        ('int8', True)
        >>> pocketbert.load("my-bundle").classify("A clever film.").label in ("negative", "positive")
        True
    """
    from pipeline.run.checkpoint import quantize_checkpoint

    texts = as_texts(settings)
    with _shown(progress) as on_step:
        return quantize_checkpoint(str(checkpoint), texts, None if out is None else Path(out), on_step)


def run(
    target: str | Path, out: str | Path | None = None, settings: Settings = (), progress: bool = False
) -> FinishedRun:
    """Runs every stage, from data to a measured bundle.

    A second run repeats only what changed. A run that was killed continues where it was.

    Args:
        target: a recipe's file, the name of a built-in recipe ("demo-classification"), or a file with labelled data.
        out: the folder of the results; by default runs/NAME.
        settings: keys of the recipe, as a mapping or as texts "key=value". `pocketbert keys` lists them.
        progress: whether to show the progress on stderr.

    Raises:
        UserError: the recipe or its data are wrong, a check of the bundle fails, or several processes were launched.

    Examples:
        >>> finished = pocketbert.run("reviews.toml", settings={"export.coreml": False})
        >>> finished.folder.as_posix(), finished.bundle.as_posix()
        ('runs/reviews', 'runs/reviews/bundle')
        >>> finished.results.evaluation.speeds[0].accuracy > 0.9
        True
    """
    from pipeline.run.engine import open_run
    from pipeline.run.stages.report import collect_results
    from pipeline.support import processes

    if processes.count() > 1:
        raise UserError("works in one process alone; launch the command line instead: pocketbert run")
    texts = as_texts(settings)
    with _shown(progress):
        engine = open_run(target, texts, None if out is None else Path(out))
        engine.run_up_to("report")
    return FinishedRun(
        folder=engine.workspace.root,
        bundle=engine.path("export"),
        report=engine.path("report") / "report.html",
        results=collect_results(engine.results),
    )


def init(
    data: str | Path, dev: str | Path | None = None, task: Task | None = None, out: str | Path | None = None
) -> Proposal:
    """Looks at a file with labelled data, and proposes a recipe that fits it.

    Args:
        data: the file with the labelled examples.
        dev: another file, whose examples are kept for scoring; by default some examples of `data` are.
        task: "classification", "regression" or "qa", where the file leaves it open.
        out: the file to write the recipe to; by default nothing is written.

    Returns:
        the recipe as commented TOML in `text`, as a `Recipe` in `recipe`, and what the file showed in `findings`.

    Raises:
        UserError: the file cannot be read, or no task fits it.

    Examples:
        >>> proposal = pocketbert.init("reviews.csv", out="proposed.toml")
        >>> proposal.recipe.task
        'classification'
    """
    from pipeline.run.propose import propose, write_proposal

    proposal = propose(data, dev, task)
    if out is not None:
        write_proposal(proposal, Path(out))
    return proposal


def verify(bundle: str | Path, progress: bool = False) -> Verification:
    """Checks a bundle: runs every program and compares it with the answers that were written when it was exported.

    Args:
        bundle: see `load`.
        progress: whether to show the progress on stderr.

    Returns:
        every check with its limit; `passed` says whether all of them hold. A failed check is returned, not raised.

    Raises:
        UserError: the bundle or a file of it cannot be read, or a file is altered.

    Examples:
        >>> pocketbert.verify("runs/reviews").passed
        True
    """
    from pipeline.bundle.opening import find_bundle
    from pipeline.verify.verify import verify as verify_bundle

    folder = find_bundle(bundle)
    with _shown(progress) as on_step:
        return verify_bundle(folder, on_step=on_step)


def evaluate(
    bundle: str | Path,
    data: str | Path,
    speeds: Sequence[str | float] | None = None,
    limit: int | None = None,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Measures the score, the depth and the latency of a bundle on labelled data, at each of some speeds.

    Args:
        bundle: see `load`.
        data: a file with labels, the name of a hub data set, or "demo" for the embedded examples.
        speeds: names of calibrated speeds, "full", or uncertainty thresholds; by default only the default speed.
        limit: how many examples to use, from the first on; by default all.
        text_column, pair_column, label_column: names of columns, where they cannot be guessed from the header.
        threads: see `load`.
        progress: whether to show the progress on stderr.

    Raises:
        UserError: the bundle or the data cannot be read, a label is unknown to the bundle, or a speed is.

    Examples:
        >>> evaluation = pocketbert.evaluate("runs/reviews", "reviews.csv", ["full", "fast"], limit=20)
        >>> [(speed.speed, speed.mean_depth) for speed in evaluation.speeds]
        [('full', 2.0), ('fast', 1.0)]
    """
    from pipeline.bundle.opening import Bundle, default_speed, find_bundle
    from pipeline.run.examples import read_labelled
    from pipeline.runtime.evaluate import evaluate as evaluate_bundle

    opened = Bundle.open(find_bundle(bundle))
    examples = read_labelled(str(data), opened.manifest.task, text_column, pair_column, label_column)
    wanted = [default_speed(opened.manifest)] if speeds is None else [speeds] if isinstance(speeds, str) else speeds
    with _shown(progress) as on_step:
        return evaluate_bundle(opened, examples, wanted, limit, on_step, threads, source=data)


@contextmanager
def _shown(wanted: bool) -> Iterator[OnStep]:
    """Yields a function that reports steps on stderr; or one that reports nothing, and keeps the run silent as well."""
    from pipeline.support import progress

    with progress.progress() if wanted else progress.muted() as on_step:
        yield on_step
