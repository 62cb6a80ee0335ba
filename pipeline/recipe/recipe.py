"""A whole recipe, and the rules that its sections must follow together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from pipeline import schemes
from pipeline.data.options import InputOptions, QuestionOptions
from pipeline.names import Task
from pipeline.recipe.sections import (
    QA,
    Bench,
    Data,
    Distill,
    Exits,
    Export,
    Pretrain,
    Quantize,
    Section,
    Student,
    Teacher,
)
from pipeline.tasks import get_task

MIN_ROUNDING_TEXTS = 16  # fewer texts say little about the inputs that matrices have in other texts


class Recipe(Section):
    """All choices of a run."""

    name: str = Field(pattern="^[A-Za-z0-9._-]+$", description="name of the run, in its report and its bundle")
    task: Task = Field(description="classification, regression or qa (question answering)")
    seed: int = Field(0, description="seed of all random numbers: samples, splits, initial weights, batches")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="number format of training; auto takes bf16 if the processor computes in it"
    )
    data: Data = Data()
    qa: QA = QA()
    pretrain: Pretrain = Pretrain()
    teacher: Teacher = Teacher()
    student: Student = Student()
    distill: Distill = Distill()
    exits: Exits = Exits()
    quantize: Quantize = Quantize()
    export: Export = Export()
    bench: Bench = Bench()

    @model_validator(mode="after")
    def consistent(self) -> Recipe:
        for rule in RULES:
            rule(self)
        return self

    @property
    def head(self) -> str:
        """The kind of exit head, with the default resolved."""
        return get_task(self.task).heads[0] if self.exits.head == "default" else self.exits.head

    @property
    def input_options(self) -> InputOptions:
        """The lengths at which inputs are cut."""
        return InputOptions(self.data.max_length, QuestionOptions(**self.qa.model_dump()))


# A rule raises ValueError("key: what is wrong; what to set") if the values of a recipe do not fit each other.


def check_exits(recipe: Recipe) -> None:
    task = get_task(recipe.task)
    if recipe.exits.head not in (*task.heads, "default"):
        raise ValueError(
            f"exits.head: {recipe.exits.head!r} is not a head for {recipe.task}; "
            f"set it to one of {', '.join(task.heads)}"
        )
    if recipe.exits.uncertainty not in task.uncertainties:
        raise ValueError(
            f"exits.uncertainty: {recipe.exits.uncertainty!r} is not a measure for {recipe.task}; "
            f"set it to {' or '.join(task.uncertainties)}"
        )


def check_rounding(recipe: Recipe) -> None:
    if 0 < recipe.quantize.rounding_texts < MIN_ROUNDING_TEXTS:
        raise ValueError(
            f"quantize.rounding_texts: {recipe.quantize.rounding_texts} texts are too few; "
            f"set it to at least {MIN_ROUNDING_TEXTS}, or to 0"
        )


def check_task_options(recipe: Recipe) -> None:
    task = get_task(recipe.task)
    if task.predicts_number and recipe.exits.temperature_scaling:
        raise ValueError(
            f"exits.temperature_scaling: a {recipe.task} has no probabilities to calibrate; set it to false"
        )
    if problem := task.options_problem(recipe.input_options):
        raise ValueError(problem)


def check_losses(recipe: Recipe) -> None:
    pretrain, distill = recipe.pretrain, recipe.distill
    if not (pretrain.soft_weight or pretrain.mlm_weight or pretrain.hidden_weight):
        raise ValueError(
            "pretrain: soft_weight, mlm_weight and hidden_weight are all 0, so there is no loss; set one above 0"
        )
    if distill.unlabelled and not get_task(recipe.task).takes_unlabelled:
        raise ValueError(f"distill.unlabelled: texts alone are no input for {recipe.task}; leave it out")
    if distill.keep_targets and (distill.hidden_weight or distill.attention_weight):
        raise ValueError(
            "distill.keep_targets: keeps the teacher's logits only, but hidden_weight or attention_weight "
            "also compares its hidden states; set it to false, or both weights to 0"
        )
    shares = distill.training.exit_shares
    if shares is not None and (min(shares, default=0) < 0 or not any(shares)):
        raise ValueError(
            "distill.training.exit_shares: no share may be below 0, and one must be above 0; "
            "correct them, or leave it out"
        )
    weights = (
        distill.soft_weight,
        distill.hard_weight,
        distill.hidden_weight,
        distill.attention_weight,
        distill.training.exit_weight,
    )
    if distill.training.epochs and not any(weights):
        raise ValueError(
            "distill: every weight is 0, so there is no loss; set one above 0, or distill.training.epochs to 0"
        )


def check_schemes(recipe: Recipe) -> None:
    quantize, export = recipe.quantize, recipe.export
    budgets = (quantize.budget_mb, quantize.budget_points)
    by_matrix = schemes.SCHEMES[quantize.scheme].by_matrix
    table_in_mix = schemes.SCHEMES[quantize.embeddings].by_matrix
    if by_matrix and budgets == (None, None):
        raise ValueError(
            f"quantize.scheme: {quantize.scheme} needs a budget; set quantize.budget_mb or quantize.budget_points"
        )
    if not by_matrix and (budgets != (None, None) or table_in_mix):
        wrong = "embeddings" if table_in_mix else "budget_mb" if quantize.budget_mb is not None else "budget_points"
        raise ValueError(
            f"quantize.{wrong}: is for the scheme mixed, but the scheme is {quantize.scheme}; "
            "set quantize.scheme to mixed"
        )
    precision, target = export.coreml_precision, export.coreml_target
    coreml = schemes.coreml_weights(precision)
    if not coreml.runs_on(target):
        raise ValueError(
            f"export.coreml_precision: {precision} needs {coreml.minimum_system}, but "
            f"export.coreml_target is {target}; set that to {coreml.minimum_system}, or this to {coreml.alternative}"
        )
    follows_mix = schemes.SCHEMES[precision].by_matrix
    if follows_mix and not by_matrix:
        raise ValueError(
            f"export.coreml_precision: {precision} follows quantize.scheme=mixed, but that is {quantize.scheme}; "
            f"set that to mixed, or this to {coreml.alternative}"
        )
    if export.executorch_coreml and (coreml.int8_inputs or follows_mix):
        raise ValueError(
            f"export.executorch_coreml: computes in float16 and has no {precision}; "
            "set it to false, or export.coreml_precision to another scheme"
        )


def check_lengths(recipe: Recipe) -> None:
    key, longest = get_task(recipe.task).longest_input(recipe.input_options)
    if longest > recipe.export.max_length:
        raise ValueError(
            f"export.max_length: {recipe.export.max_length} is below the longest input, {longest}; "
            f"set it to at least that, or {key} lower"
        )


# In this order: the first problem is the one that the user sees.
RULES: tuple[Callable[[Recipe], None], ...] = (
    check_exits,
    check_rounding,
    check_task_options,
    check_losses,
    check_schemes,
    check_lengths,
)
