"""Chooses a scheme per matrix so that a model meets a budget.

The search starts with float32 and goes down greedily, least divergence per saved byte first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from pipeline.data.examples import Example
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.schemes import MIX_CHOICES, SCHEMES, UNQUANTIZED, WORD_TABLE_MATRIX
from pipeline.support.document import Document
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import Labels
from quantize.schemes import apply_schemes
from quantize.sensitivity import Sensitivity, matrix_bytes, matrix_shapes, measure_sensitivity
from quantize.size import executorch_parts

MEGABYTE = 1e6


class Mix(Document):
    """The chosen schemes, with their size and what they cost."""

    schemes: dict[str, str] = Field(description="the scheme of every matrix, including the word table")
    bytes: int = Field(
        description="bytes of all weights in the ExecuTorch programs, including those that no scheme applies to"
    )
    divergence: float = Field(description="divergence of the last exit from float32 on the examples, in nats")
    loss: float | None = Field(description="score lost at the last exit, a fraction of 1; null without labels")
    sensitivity: Sensitivity


@dataclass(frozen=True)
class Choice:
    """What a matrix takes and costs in one scheme; the divergence is in nats."""

    bytes: int
    divergence: float


def greedy_path(choices: Mapping[str, Mapping[str, Choice]]) -> list[tuple[str, str]]:
    """Returns the moves from float32 to the smallest scheme of each matrix, least divergence per saved byte first.

    A matrix may take one scheme first and a smaller one later, or the smaller at once where that costs no more per
    byte.

    Args:
        choices: the schemes of every matrix, including `UNQUANTIZED`.

    Returns:
        (matrix, scheme) of each move, in order.
    """
    current = dict.fromkeys(choices, UNQUANTIZED)
    path: list[tuple[str, str]] = []
    while True:
        moves: list[tuple[float, int, str, str]] = []
        for matrix, schemes in choices.items():
            now = schemes[current[matrix]]
            for scheme, then in schemes.items():
                if then.bytes < now.bytes:
                    moves.append(
                        ((then.divergence - now.divergence) / (now.bytes - then.bytes), then.bytes, matrix, scheme)
                    )
        if not moves:
            return path
        _, _, matrix, scheme = min(moves)
        current[matrix] = scheme
        path.append((matrix, scheme))


def choose(
    programs: Programs,
    examples: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    labels: Labels,
    recipe: Recipe,
    on_step: OnStep = silent,
    rounded: Programs | None = None,
) -> Mix:
    """Returns the mix that meets the recipe's budget.

    With `quantize.budget_mb` it is the first mix on the greedy path that is small enough. With
    `quantize.budget_points` alone it is the smallest mix on the path that loses no more on the examples, with all its
    matrices quantized together. Bisection finds it, which assumes that more quantization loses more. With both
    budgets the size decides, and the loss is checked.

    Args:
        programs: in float32.
        examples: see `measure_sensitivity`; a budget of points needs labels.
        rounded: the weights that int4 takes, as of `apply_scheme`.

    Raises:
        UserError: no mix meets the budget, and the message says what the best would be; or there are too few
            examples, or they lack labels.
    """
    options = recipe.quantize
    if options.budget_points is not None and any(getattr(example, "label", "") is None for example in examples):
        raise UserError(
            "needs labelled texts to measure a loss on; give labels, or quantize.budget_mb",
            field="quantize.budget_points",
        )
    sensitivity, judge = measure_sensitivity(
        programs, examples, tokenizer, labels, recipe, MIX_CHOICES, on_step, rounded
    )
    full = executorch_parts(programs, UNQUANTIZED, UNQUANTIZED).total
    choices = measured_choices(sensitivity, programs)
    fixed = {}
    if not SCHEMES[options.embeddings].by_matrix:
        fixed = {WORD_TABLE_MATRIX: options.embeddings}
        choices.pop(WORD_TABLE_MATRIX)
    path = greedy_path(choices)

    def mix_after(moves: int) -> dict[str, str]:
        return {**fixed, **dict.fromkeys(choices, UNQUANTIZED), **dict(path[:moves])}

    def measured(moves: int) -> tuple[float, float | None]:
        return judge.judge(apply_schemes(programs, mix_after(moves), rounded))

    def loss_after(moves: int) -> float:
        loss = measured(moves)[1]
        assert loss is not None  # a budget of points has labels, see above
        return loss

    sizes = [
        executorch_parts(programs, mix_after(moves), mix_after(moves)[WORD_TABLE_MATRIX]).total
        for moves in range(len(path) + 1)
    ]
    moves = 0
    if options.budget_mb is not None:
        small_enough = [moves for moves, size in enumerate(sizes) if size <= options.budget_mb * MEGABYTE]
        if not small_enough:
            raise UserError(
                f"{options.budget_mb:g} MB cannot be met: the smallest mix is {sizes[-1] / MEGABYTE:.2f} MB "
                f"(float32 is {full / MEGABYTE:.2f}); raise it, or take smaller embeddings",
                field="quantize.budget_mb",
            )
        moves = small_enough[0]
    elif options.budget_points is not None:
        budget = options.budget_points / 100
        moves = bisect_last(len(path), lambda moves: loss_after(moves) <= budget)
    divergence, loss = measured(moves)
    if options.budget_points is not None and loss is not None and 100 * loss > options.budget_points:
        where = "" if options.budget_mb is None else f" in {options.budget_mb:g} MB"
        raise UserError(
            f"{options.budget_points:g} points cannot be met{where}: the least loss reached is {100 * loss:.2f}; "
            + ("raise it, or the megabytes" if where else "raise it, or take larger embeddings"),
            field="quantize.budget_points",
        )
    schemes = mix_after(moves)
    return Mix(schemes=schemes, bytes=sizes[moves], divergence=divergence, loss=loss, sensitivity=sensitivity)


def bisect_last(last: int, fits: Callable[[int], bool]) -> int:
    """Returns the greatest number from 0 to `last` that fits, by bisection; 0 where no other does.

    Args:
        fits: true up to some number and false above it; it is not asked about 0.
    """
    low, high = 0, last
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def measured_choices(sensitivity: Sensitivity, programs: Programs) -> dict[str, dict[str, Choice]]:
    """Returns the schemes that each matrix may have: float32, and those that were measured."""
    choices = {}
    for matrix, shape in matrix_shapes(programs).items():
        choices[matrix] = {UNQUANTIZED: Choice(matrix_bytes(matrix, UNQUANTIZED, shape), 0.0)}
        choices[matrix].update(
            (entry.scheme, Choice(entry.bytes, entry.divergence)) for entry in sensitivity.of(matrix).values()
        )
    return choices
