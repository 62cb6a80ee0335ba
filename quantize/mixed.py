"""A scheme for each matrix such that a model meets a budget: from float32 down, greedily by divergence per byte saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from pipeline.data.examples import Example
from pipeline.data.labels import LabelRange
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.schemes import MIX_CHOICES, SCHEMES, UNQUANTIZED, WORD_TABLE_MATRIX
from pipeline.support.document import Document
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from quantize.schemes import apply_schemes
from quantize.sensitivity import Sensitivity, measure_sensitivity, shapes_of, stored
from quantize.size import executorch_parts

MEGABYTE = 1e6


class Mix(Document):
    """What was chosen, and what it comes to."""

    schemes: dict[str, str] = Field(description="of every matrix, the word table among them")
    bytes: int = Field(
        description="of all weights in the ExecuTorch programs, those that no scheme applies to included"
    )
    divergence: float = Field(description="of the last exit from float32's on the examples, in nats")
    loss: float | None = Field(description="score lost there, a fraction of 1; null without labels")
    sensitivity: Sensitivity


@dataclass(frozen=True)
class Choice:
    """One scheme of a matrix."""

    bytes: int
    divergence: float


def greedy_path(choices: Mapping[str, Mapping[str, Choice]]) -> list[tuple[str, str]]:
    """From all matrices in float32 to each in its smallest scheme, one (matrix, scheme) at a time, the cheapest per byte saved first.

    A matrix may take a scheme on the way and a smaller one later, or go to the smaller at once where that is as cheap per byte.

    Args:
        choices: of every matrix by scheme, `UNQUANTIZED` among them.
    """
    current = dict.fromkeys(choices, UNQUANTIZED)
    path = []
    while True:
        moves = []
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
    labels: Sequence[str] | LabelRange,
    recipe: Recipe,
    on_step: OnStep = silent,
    rounded: Programs | None = None,
) -> Mix:
    """The mix that the recipe's budget asks for.

    With `quantize.budget_mb` it is the first on the greedy path that is small enough. With `quantize.budget_points` alone it is the smallest
    on the path that loses no more on the examples, all its matrices quantized together, as bisection finds it; one half of the path is
    given up at each step, which is right as far as more quantization loses more. With both, the size decides, and the loss is checked.

    Args:
        programs: in float32.
        examples: see `measure_sensitivity`; with labels where there is a budget of points.
        rounded: the weights that int4 takes, as of `apply_scheme`.

    Raises:
        UserError: no mix meets the budget; the line says what the best would be. Or there are too few examples, or they lack labels.
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
    choices = choices_of(sensitivity, programs)
    fixed = {}
    if not SCHEMES[options.embeddings].by_matrix:
        fixed = {WORD_TABLE_MATRIX: options.embeddings}
        choices.pop(WORD_TABLE_MATRIX)
    path = greedy_path(choices)

    def mix_at(steps: int) -> dict[str, str]:
        return {**fixed, **dict.fromkeys(choices, UNQUANTIZED), **dict(path[:steps])}

    sizes = [
        executorch_parts(programs, mix_at(steps), mix_at(steps)[WORD_TABLE_MATRIX]).total
        for steps in range(len(path) + 1)
    ]
    steps = 0
    if options.budget_mb is not None:
        enough = [at for at, size in enumerate(sizes) if size <= options.budget_mb * MEGABYTE]
        if not enough:
            raise UserError(
                f"{options.budget_mb:g} MB cannot be met: the smallest mix is {sizes[-1] / MEGABYTE:.2f} MB (float32 is {full / MEGABYTE:.2f}); "
                "raise it, or take smaller embeddings",
                field="quantize.budget_mb",
            )
        steps = enough[0]
    elif options.budget_points is not None:
        steps = furthest(
            len(path),
            lambda at: judge.judge(apply_schemes(programs, mix_at(at), rounded))[1] <= options.budget_points / 100,
        )
    schemes = mix_at(steps)
    apart, loss = judge.judge(apply_schemes(programs, schemes, rounded))
    if options.budget_points is not None and 100 * loss > options.budget_points:
        where = "" if options.budget_mb is None else f" in {options.budget_mb:g} MB"
        raise UserError(
            f"{options.budget_points:g} points cannot be met{where}: the least loss reached is {100 * loss:.2f}; raise it"
            + (", or the megabytes" if where else ", or take larger embeddings"),
            field="quantize.budget_points",
        )
    return Mix(schemes=schemes, bytes=sizes[steps], divergence=apart, loss=loss, sensitivity=sensitivity)


def furthest(last: int, fits: Callable[[int], bool]) -> int:
    """The greatest of 0 to `last` that fits, by bisection, as if all below one that fits did; 0 where none other does."""
    low, high = 0, last
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def choices_of(sensitivity: Sensitivity, programs: Programs) -> dict[str, dict[str, Choice]]:
    """What each matrix may have: float32, and what was measured."""
    choices = {}
    for matrix, shape in shapes_of(programs).items():
        choices[matrix] = {UNQUANTIZED: Choice(stored(matrix, UNQUANTIZED, shape), 0.0)}
        choices[matrix].update(
            (entry.scheme, Choice(entry.bytes, entry.divergence)) for entry in sensitivity.of(matrix).values()
        )
    return choices
