"""The quantized model of a recipe, made in the same way from the student of a run and from a given checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torch import Tensor

from pipeline.data.examples import Example
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.checkpoint import load_model
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.run.examples import sample_examples, training_items
from pipeline.run.precision import (
    coreml_has_int4,
    coreml_has_int8_inputs,
    coreml_is_mixed,
    include_int4,
    is_mixed,
    rounds_by_texts,
)
from pipeline.run.preconditions import check_sensitivity_size
from pipeline.run.results import Results
from pipeline.support.progress import OnStep
from pipeline.tasks import Labels
from quantize.int8_inputs import input_gains
from quantize.mixed import Mix, choose
from quantize.rounding import round_model, with_rounded
from quantize.schemes import apply_scheme, apply_schemes
from quantize.sensitivity import Sensitivity, measure_sensitivity

MIX_FILE = "mix.json"  # of the stage quantize: the scheme of each matrix, and why
ROUNDED_FOLDER = "rounded"  # of the stage quantize: the student with its matrices rounded to the values of int4


def round_to_int4(
    model: ExitModel,
    texts: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    labels: Labels,
    recipe: Recipe,
    on_step: OnStep,
) -> ExitModel:
    """Returns a copy of the model with int4 values in its matrices, rounded so that errors cancel on the texts."""
    return round_model(model, training_items(texts, tokenizer, labels, recipe), on_step)


def choose_mix(
    model: ExitModel,
    rounded: ExitModel | None,
    examples: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    labels: Labels,
    recipe: Recipe,
    on_step: OnStep,
) -> Mix:
    """Chooses the scheme of each matrix by the recipe's budget.

    Args:
        model: the model in float32.
        rounded: the same from `round_to_int4`, whose weights int4 takes; None rounds each weight to the nearest value.
        examples: what the answers in each scheme are compared on.
    """
    programs = None if rounded is None else Programs.of(rounded)
    return choose(Programs.of(model), examples, tokenizer, labels, recipe, on_step, programs)


def quantize_model(
    model: ExitModel, rounded: ExitModel | None, matrix_schemes: Mapping[str, str], recipe: Recipe
) -> Programs:
    """Returns the quantized programs of a model.

    Args:
        model, rounded: see `choose_mix`.
        matrix_schemes: the scheme of each matrix, if the recipe's scheme is mixed.
    """
    programs = Programs.of(model)
    rounded_programs = None if rounded is None else Programs.of(rounded)
    if is_mixed(recipe):
        return apply_schemes(programs, matrix_schemes, rounded_programs)
    return apply_scheme(programs, recipe.quantize.scheme, recipe.quantize.embeddings, rounded_programs)


def coreml_model(
    model: ExitModel, rounded: ExitModel | None, matrix_schemes: Mapping[str, str], recipe: Recipe
) -> ExitModel:
    """Returns the model whose weights the Core ML packages store; the arguments are those of `quantize_model`."""
    if rounded is None or not coreml_has_int4(recipe):
        return model
    return with_rounded(model, rounded, matrix_schemes) if coreml_is_mixed(recipe) else rounded


# The student of a run.


def round_student(results: Results, on_step: OnStep) -> ExitModel:
    """Rounds the student's matrices to int4 on training texts."""
    recipe = results.recipe
    texts = sample_examples(results.examples("train"), recipe.quantize.rounding_texts, recipe.seed)
    return round_to_int4(results.model("exits"), texts, results.tokenizer(), results.labels(), recipe, on_step)


def rounded_student(results: Results) -> ExitModel | None:
    """Returns the student that the stage quantize rounded and saved; None if the recipe rounds to the nearest value."""
    if not rounds_by_texts(results.recipe):
        return None
    return load_model(results.path("quantize") / ROUNDED_FOLDER)


def choose_student_mix(results: Results, on_step: OnStep) -> Mix:
    """Chooses the scheme of each matrix of the student, compared on examples that no threshold is tested on."""
    recipe = results.recipe
    examples = results.draft_examples(recipe.quantize.sensitivity_examples)
    model, rounded = results.model("exits"), rounded_student(results)
    return choose_mix(model, rounded, examples, results.tokenizer(), results.labels(), recipe, on_step)


def student_schemes(results: Results) -> dict[str, str]:
    """Returns the scheme that each matrix of the student got; nothing unless the recipe's scheme is mixed."""
    if not is_mixed(results.recipe):
        return {}
    return dict(json.loads((results.path("quantize") / MIX_FILE).read_text())["schemes"])


def quantized_student(results: Results) -> Programs:
    """Returns the quantized student. It is made again each time, which takes a second, and need not be saved."""
    return quantize_model(results.model("exits"), rounded_student(results), student_schemes(results), results.recipe)


def coreml_student(results: Results) -> ExitModel:
    """Returns the student whose weights the Core ML packages store: rounded where the packages have int4 matrices."""
    return coreml_model(results.model("exits"), rounded_student(results), student_schemes(results), results.recipe)


def student_input_gains(results: Results, on_step: OnStep) -> dict[str, Tensor] | None:
    """Returns the gains of the channels of int8 inputs; None where no Core ML program has int8 inputs."""
    if not coreml_has_int8_inputs(results.recipe):
        return None
    texts = results.draft_examples(results.recipe.export.coreml_calibration)
    items = training_items(texts, results.tokenizer(), results.labels(), results.recipe)
    return input_gains(Programs.of(results.model("exits")), items, on_step)


def student_sensitivity(results: Results, schemes: Sequence[str], on_step: OnStep) -> Sensitivity:
    """Measures how far the student's answers move when one matrix alone is quantized, for each matrix and scheme.

    Args:
        results: those of a run whose stage exits is done.
        schemes: names of quantization schemes.
        on_step: is told of the progress.

    Raises:
        UserError: a scheme is unknown, or the calibration split is too small.
    """
    recipe = results.recipe
    check_sensitivity_size(recipe, results.calibration_count())
    examples = results.draft_examples(recipe.quantize.sensitivity_examples)
    by_texts = include_int4(schemes) and recipe.quantize.rounding_texts > 0
    rounded = Programs.of(round_student(results, on_step)) if by_texts else None
    student = Programs.of(results.model("exits"))
    sensitivity, _ = measure_sensitivity(
        student, examples, results.tokenizer(), results.labels(), recipe, schemes, on_step, rounded
    )
    return sensitivity
