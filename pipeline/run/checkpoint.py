"""Quantizes a fine-tuned checkpoint as it stands into a bundle, which appears only if all checks of it passed."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.bundle.manifest import Manifest, Speed
from pipeline.bundle.opening import Bundle
from pipeline.data.examples import Example
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.export.bundle import EXECUTORCH_FILE, BundleSource, Labels, write_bundle
from pipeline.export.documents import shown_source
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.names import APPLE_BACKENDS, Task
from pipeline.recipe import Recipe
from pipeline.run.checkpoint_exits import add_exits, calibrate_speeds, scale_temperatures, train_exits
from pipeline.run.checkpoint_source import (
    CalibrationData,
    build_model,
    build_recipe,
    load_with_head,
    read_calibration_data,
    read_rounding_texts,
    read_texts,
)
from pipeline.run.examples import DEMO, training_items
from pipeline.run.named_speeds import left_out_provenance, left_out_speeds
from pipeline.run.precision import coreml_has_int8_inputs, has_int4, is_mixed
from pipeline.run.preconditions import check_calibration_size, check_positions
from pipeline.run.quantizing import choose_mix, coreml_model, quantize_model, round_to_int4
from pipeline.runtime.evaluate import evaluate
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.workspace import write_text
from pipeline.tasks import get_task
from pipeline.verify.verify import Verification, verify
from quantize.checkpoint import QuantizedCheckpoint, SpeedOutcome
from quantize.int8_inputs import input_gains
from quantize.sensitivity import Comparison, Judge
from quantize.size import size_of

CONFORMANCE_EXAMPLES = 8
WARM_UP_INPUTS = 5  # run before anything is timed


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint, ready to be quantized.

    Attributes:
        model: the checkpoint as a model in float32, with one exit, or with several that are not trained yet.
        examples: the texts on which the quantized model is compared with it.
        values: what the data write for each class; empty for question answering.
        tokenizer: the checkpoint's.
        calibration: the examples to calibrate speeds on; None where there is one exit.
    """

    recipe: Recipe
    model: ExitModel
    examples: list[Example]
    values: tuple[str, ...]
    tokenizer: WordPieceTokenizer
    calibration: CalibrationData | None

    @property
    def labels(self) -> tuple[str, ...]:
        """What each logit stands for, as `Results.labels` has it."""
        return self.values or ("start", "end")


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model, and how it was made.

    Attributes:
        source: the models that the bundle is made from: the quantized programs among them.
        matrix_schemes: the scheme of each matrix, if the recipe's is mixed.
        rounding_texts: how many texts int4 matrices were rounded by.
        comparison: how far its answers are from those of float32.
        score: that of float32 on the compared texts, a fraction of 1; None without labels.
        speeds: the calibrated speeds; none without calibration examples.
    """

    source: BundleSource
    matrix_schemes: Mapping[str, str]
    rounding_texts: int
    comparison: Comparison
    score: float | None
    speeds: Mapping[str, Speed]


def quantize_checkpoint(
    weights: str, settings: Sequence[str], out: Path | None, on_step: OnStep = silent
) -> QuantizedCheckpoint:
    """Quantizes a checkpoint and writes its bundle, which appears only if all checks of it passed.

    Args:
        weights: a folder, a hub name or "minilm", as in `teacher.weights` of a recipe. It must be a BERT or a
            DistilBERT with a head for classification or question answering.
        settings: keys of a recipe as `key=value`, for example `quantize.scheme=int4` or `export.max_length=128`. The
            quantized model is compared with float32 on `data.dev`, with labels or without; a mix is chosen on the same
            texts. Without the key they are calibration examples or, without these, the embedded texts. With
            `data.calibration=FILE` the bundle has an exit after every layer, and the speeds are calibrated on that
            file. int4 is rounded by texts of `data.train`, or by those of
            `data.dev` that are not compared.
        out: the folder of the bundle, which must not exist yet; runs/NAME-SCHEME if None.
        on_step: is told of the progress.

    Raises:
        UserError: the architecture, the head or the type of the weights is not supported, a length exceeds the model's
            positions, there are too few texts, a budget cannot be met, the folder exists, or a program is out of
            tolerance.
    """
    loaded, task = load_checkpoint(weights, settings)
    out = out or Path("runs") / f"{loaded.recipe.name}-{loaded.recipe.quantize.scheme}"
    if out.exists():
        raise UserError("is already there; remove it, or give another folder with --out", file=out)
    quantized = quantize_loaded(loaded, on_step)
    manifest, verification = write_verified(loaded, quantized, weights, out, on_step)
    report, speeds = size_of(out), measure_bundle(out, loaded, on_step)
    return QuantizedCheckpoint(
        bundle=str(out),
        weights=weights,
        task=task,
        scheme=manifest.scheme,
        embeddings=manifest.embeddings_scheme,
        matrix_schemes=dict(quantized.matrix_schemes),
        file_bytes=(out / EXECUTORCH_FILE).stat().st_size,
        fp32_bytes=report.fp32_bytes,
        parts=report.targets[0].parts.model_dump(),
        texts=len(loaded.examples),
        rounding_texts=quantized.rounding_texts,
        metric=get_task(task).speed_metric,
        parity_db=next(check.value for check in verification.checks if check.metric == "logits_snr_db"),
        **quantized.comparison.model_dump(),
        bundle_bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        backends=sorted({program.backend for program in manifest.programs}),
        score_before=quantized.score,
        score_after=speeds[0].score,
        speeds=speeds,
        checks=len(verification.checks),
        next_command=next_command(out, loaded),
    )


def load_checkpoint(weights: str, settings: Sequence[str]) -> tuple[LoadedCheckpoint, Task]:
    """Reads a checkpoint and the texts to compare it on; arguments and errors are those of `quantize_checkpoint`."""
    pretrained, task = load_with_head(weights)
    recipe = build_recipe(pretrained, task, settings)
    check_positions(recipe, pretrained.config.max_positions)
    tokenizer = pretrained.tokenizer
    model = build_model(pretrained, task, tokenizer.sep_id)
    calibration = read_calibration_data(recipe)
    if calibration is not None:
        check_calibration_size(recipe, len(calibration.examples))
        model = add_exits(model, recipe)
    examples, values = read_texts(recipe, pretrained, calibration)
    return LoadedCheckpoint(recipe, model, examples, values, tokenizer, calibration), task


def quantize_loaded(loaded: LoadedCheckpoint, on_step: OnStep) -> QuantizedModel:
    """Trains the exits, quantizes the model as the recipe says, calibrates, and compares the result with float32."""
    recipe, model, tokenizer, labels = loaded.recipe, loaded.model, loaded.tokenizer, loaded.labels
    calibration = loaded.calibration
    draft: list[Example] = []
    if calibration is not None:
        draft = calibration.draft(recipe.seed)
        model = train_exits(model, calibration.lessons, tokenizer, labels, recipe, on_step)
        scale_temperatures(model, draft, tokenizer, labels, recipe, on_step)
    judge = Judge(Programs.of(model), loaded.examples, tokenizer, labels, recipe)
    texts = read_rounding_texts(recipe, loaded.examples, calibration) if has_int4(recipe) else []
    rounded = round_to_int4(model, texts, tokenizer, labels, recipe, on_step) if texts else None
    schemes: Mapping[str, str] = {}
    if is_mixed(recipe):
        compared = (draft or loaded.examples)[: recipe.quantize.sensitivity_examples]
        schemes = choose_mix(model, rounded, compared, tokenizer, labels, recipe, on_step).schemes
    programs = quantize_model(model, rounded, schemes, recipe)
    gains = None
    if coreml_has_int8_inputs(recipe):
        chosen = (draft or loaded.examples)[: recipe.export.coreml_calibration]
        gains = input_gains(Programs.of(model), training_items(chosen, tokenizer, labels, recipe), on_step)
    speeds = {}
    if calibration is not None:
        speeds = calibrate_speeds(programs, calibration.examples, tokenizer, labels, recipe, on_step)
    source = BundleSource(
        model, programs, coreml_model(model, rounded, schemes, recipe), matrix_schemes=schemes, input_gains=gains
    )
    score = None if judge.scores is None else float(judge.scores[-1])
    return QuantizedModel(source, schemes, len(texts), judge.compare(programs), score, speeds)


def measure_bundle(bundle: Path, loaded: LoadedCheckpoint, on_step: OnStep) -> list[SpeedOutcome]:
    """Runs the bundle's programs on the compared texts at full depth and at every speed, full depth first.

    Without labels it measures depth and latency alone.
    """
    opened, task = Bundle.open(bundle), get_task(loaded.recipe.task)
    names = ["full", *opened.manifest.speeds]
    if all(task.is_labelled(example) for example in loaded.examples):
        evaluation = evaluate(opened, loaded.examples, names, on_progress=on_step)
        return [
            SpeedOutcome(
                speed=result.speed,
                score=getattr(result, task.speed_metric),
                mean_depth=result.mean_depth,
                mean_ms=result.latency_ms.mean,
                p50_ms=result.latency_ms.p50,
                p95_ms=result.latency_ms.p95,
            )
            for result in evaluation.speeds
        ]
    runner, outcomes = Runner(opened), []
    runner.prewarm()
    for name in names:
        for example in loaded.examples[:WARM_UP_INPUTS]:
            runner.predict(example, name)
        results = [runner.predict(example, name) for example in loaded.examples]
        times = np.array([result.latency_ms for result in results])
        outcomes.append(
            SpeedOutcome(
                speed=name,
                score=None,
                mean_depth=float(np.mean([result.depth for result in results])),
                mean_ms=float(times.mean()),
                p50_ms=float(np.percentile(times, 50)),
                p95_ms=float(np.percentile(times, 95)),
            )
        )
    return outcomes


def next_command(bundle: Path, loaded: LoadedCheckpoint) -> str:
    """Returns the command that answers the shortest of the compared texts with the bundle."""
    task = get_task(loaded.recipe.task)
    example = min(loaded.examples, key=task.text_length)
    return shlex.join(["pocketbert", "predict", str(bundle), *task.request_options(example)])


def write_verified(
    loaded: LoadedCheckpoint, quantized: QuantizedModel, weights: str, out: Path, on_step: OnStep
) -> tuple[Manifest, Verification]:
    """Writes the bundle beside its folder, verifies it, and moves it into place.

    Raises:
        UserError: a check failed. All of them can then be read in the file that the message names.
    """
    recipe, error = loaded.recipe, quantized.comparison.relative_error
    data = recipe.data
    compared = data.calibration if loaded.calibration and data.dev == DEMO else data.dev
    texts = f"{len(loaded.examples)} texts of {shown_source(str(compared))}"
    provenance = {"weights": shown_source(weights), "relative_error": f"{error:.3g} on {texts}"}
    if isinstance(data.calibration, str):
        provenance["calibration"] = Path(data.calibration).name
    if loaded.calibration is not None:
        provenance |= left_out_provenance(left_out_speeds(recipe, len(loaded.calibration.examples)))
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    try:
        manifest = write_bundle(
            partial,
            recipe,
            quantized.source,
            loaded.tokenizer,
            Labels(loaded.values),
            speeds=quantized.speeds,
            conformance_examples=loaded.examples[:CONFORMANCE_EXAMPLES],
            provenance=provenance,
            on_step=on_step,
        )
        apple = any(program.backend in APPLE_BACKENDS for program in manifest.programs)
        # The Core ML programs are compared with the modules that they were made from, as in a run.
        verification = verify(partial, quantized.source.model if apple else None, on_step=on_step)
        failed = out.with_name(out.name + ".failed.json")
        if not verification.passed:
            write_text(failed, json.dumps(verification.to_json(), indent=2))
        verification.require(failed)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest, verification
