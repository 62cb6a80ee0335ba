"""A whole recipe, and the rules that its sections must follow together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

MIN_ROUNDING_TEXTS = 16  # fewer texts say little about the inputs that matrices have in other texts


class Inconsistent(ValueError):
    """Says that the values of a recipe do not fit each other; `errors` has every reason."""

    def __init__(self, errors: tuple[UserError, ...]):
        super().__init__("; ".join(str(error) for error in errors))
        self.errors = errors


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
        if errors := tuple(error for rule in RULES for error in rule(self)):
            raise Inconsistent(errors)
        return self

    @property
    def head(self) -> str:
        """The kind of exit head, with the default resolved."""
        return get_task(self.task).heads[0] if self.exits.head == "default" else self.exits.head

    @property
    def input_options(self) -> InputOptions:
        """The lengths at which inputs are cut."""
        return InputOptions(self.data.max_length, QuestionOptions(**self.qa.model_dump()))


# A rule yields an error with the key, what is wrong, and the settings that mend it, if values do not fit each other.


def check_exits(recipe: Recipe) -> Iterator[UserError]:
    task = get_task(recipe.task)
    if recipe.exits.head not in (*task.heads, "default"):
        yield UserError(
            f"{recipe.exits.head!r} is not a head for {recipe.task}; set it to one of {', '.join(task.heads)}",
            field="exits.head",
            settings=["exits.head=default"],
        )
    if recipe.exits.uncertainty not in task.uncertainties:
        yield UserError(
            f"{recipe.exits.uncertainty!r} is not a measure for {recipe.task}; "
            f"set it to {' or '.join(task.uncertainties)}",
            field="exits.uncertainty",
            settings=[f"exits.uncertainty={task.uncertainties[0]}"],
        )


def check_rounding(recipe: Recipe) -> Iterator[UserError]:
    if 0 < recipe.quantize.rounding_texts < MIN_ROUNDING_TEXTS:
        yield UserError(
            f"{recipe.quantize.rounding_texts} texts are too few; set it to at least {MIN_ROUNDING_TEXTS}, or to 0",
            field="quantize.rounding_texts",
            settings=[f"quantize.rounding_texts={MIN_ROUNDING_TEXTS}"],
        )


def check_task_options(recipe: Recipe) -> Iterator[UserError]:
    task = get_task(recipe.task)
    if task.predicts_number and recipe.exits.temperature_scaling:
        yield UserError(
            f"a {recipe.task} has no probabilities to calibrate; set it to false",
            field="exits.temperature_scaling",
            settings=["exits.temperature_scaling=false"],
        )
    if problem := task.options_problem(recipe.input_options):
        yield problem


def check_losses(recipe: Recipe) -> Iterator[UserError]:
    pretrain, distill = recipe.pretrain, recipe.distill
    if not (pretrain.soft_weight or pretrain.mlm_weight or pretrain.hidden_weight):
        yield UserError(
            "soft_weight, mlm_weight and hidden_weight are all 0, so there is no loss; set one above 0",
            field="pretrain",
            settings=["pretrain.soft_weight=unset"],
        )
    if distill.unlabelled and not get_task(recipe.task).takes_unlabelled:
        yield UserError(
            f"texts alone are no input for {recipe.task}; leave it out",
            field="distill.unlabelled",
            settings=["distill.unlabelled=unset"],
        )
    if distill.keep_targets and (distill.hidden_weight or distill.attention_weight):
        yield UserError(
            "keeps the teacher's logits only, but hidden_weight or attention_weight "
            "also compares its hidden states; set it to false, or both weights to 0",
            field="distill.keep_targets",
            settings=["distill.keep_targets=false"],
        )
    shares = distill.training.exit_shares
    if shares is not None and (min(shares, default=0) < 0 or not any(shares)):
        yield UserError(
            "no share may be below 0, and one must be above 0; correct them, or leave it out",
            field="distill.training.exit_shares",
            settings=["distill.training.exit_shares=unset"],
        )
    weights = (
        distill.soft_weight,
        distill.hard_weight,
        distill.hidden_weight,
        distill.attention_weight,
        distill.training.exit_weight,
    )
    if distill.training.epochs and not any(weights):
        yield UserError(
            "every weight is 0, so there is no loss; set one above 0, or distill.training.epochs to 0",
            field="distill",
            settings=["distill.soft_weight=unset"],
        )


def check_schemes(recipe: Recipe) -> Iterator[UserError]:
    quantize = recipe.quantize
    budgets = (quantize.budget_mb, quantize.budget_points)
    by_matrix = schemes.SCHEMES[quantize.scheme].by_matrix
    table_in_mix = schemes.SCHEMES[quantize.embeddings].by_matrix
    if by_matrix and budgets == (None, None):
        yield UserError(
            f"{quantize.scheme} needs a budget; set quantize.budget_mb or quantize.budget_points",
            field="quantize.scheme",
            settings=["quantize.budget_points=0.5"],
        )
    if not by_matrix and (budgets != (None, None) or table_in_mix):
        wrong = "embeddings" if table_in_mix else "budget_mb" if quantize.budget_mb is not None else "budget_points"
        budget = [] if budgets != (None, None) else ["quantize.budget_points=0.5"]
        yield UserError(
            f"is for the scheme mixed, but the scheme is {quantize.scheme}; set quantize.scheme to mixed",
            field=f"quantize.{wrong}",
            settings=["quantize.scheme=mixed", *budget],
        )


def check_coreml(recipe: Recipe) -> Iterator[UserError]:
    precision, target = recipe.export.coreml_precision, recipe.export.coreml_target
    coreml = schemes.coreml_weights(precision)
    if not coreml.runs_on(target):
        yield UserError(
            f"{precision} needs {coreml.minimum_system}, but "
            f"export.coreml_target is {target}; set that to {coreml.minimum_system}, or this to {coreml.alternative}",
            field="export.coreml_precision",
            settings=[f"export.coreml_target={coreml.minimum_system}"],
        )
    follows_mix = schemes.SCHEMES[precision].by_matrix
    scheme = recipe.quantize.scheme
    if follows_mix and not schemes.SCHEMES[scheme].by_matrix:
        yield UserError(
            f"{precision} follows quantize.scheme=mixed, but that is {scheme}; "
            f"set that to mixed, or this to {coreml.alternative}",
            field="export.coreml_precision",
            settings=[f"export.coreml_precision={coreml.alternative}"],
        )
    if recipe.export.executorch_coreml and (coreml.int8_inputs or follows_mix):
        yield UserError(
            f"computes in float16 and has no {precision}; "
            "set it to false, or export.coreml_precision to another scheme",
            field="export.executorch_coreml",
            settings=["export.executorch_coreml=false"],
        )


def check_lengths(recipe: Recipe) -> Iterator[UserError]:
    key, longest = get_task(recipe.task).longest_input(recipe.input_options)
    if longest > recipe.export.max_length:
        yield UserError(
            f"{recipe.export.max_length} is below the longest input, {longest}; "
            f"set it to at least that, or {key} lower",
            field="export.max_length",
            settings=[f"export.max_length={longest}"],
        )


# In this order users read the problems.
RULES: tuple[Callable[[Recipe], Iterator[UserError]], ...] = (
    check_exits,
    check_rounding,
    check_task_options,
    check_losses,
    check_schemes,
    check_coreml,
    check_lengths,
)
