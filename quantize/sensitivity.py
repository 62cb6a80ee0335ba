"""What each matrix loses by fewer bits when it alone has them: divergence from float32, and score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from pipeline.data.examples import Example
from pipeline.data.items import Item
from pipeline.data.labels import LabelRange
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.exits.predictions import predict, run_programs
from pipeline.model.segments import Programs
from pipeline.names import Metric, Task
from pipeline.recipe import Recipe
from pipeline.schemes import MIX_CHOICES, SCHEMES, WORD_TABLE_MATRIX, linear_layers, word_table
from pipeline.support.document import Document
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import get_task
from quantize.schemes import LINEAR_ARITHMETIC, WORD_TABLE_ARITHMETIC, apply_schemes, check_known, named_linears

FEWEST = 16  # examples; on fewer, what one text says would decide about a matrix


class Entry(Document):
    """One matrix in one scheme, all others float32."""

    matrix: str = Field(description="a name of `quantize.schemes.named_linears`, or embeddings.word")
    scheme: str
    bytes: int = Field(description="what the matrix takes in a program")
    divergence: float = Field(
        description="of its exit from float32's, mean over the inputs, in nats; see `TaskDefinition.divergence`"
    )
    loss: float | None = Field(description="score lost at that exit, a fraction of 1; null without labels")


class Sensitivity(Document):
    """What `pocketbert sensitivity --json` prints."""

    task: Task
    metric: Metric
    examples: int
    score: float | None = Field(description="of the last exit in float32; null without labels")
    entries: list[Entry]

    def of(self, matrix: str) -> dict[str, Entry]:
        """A matrix's entries by scheme."""
        return {entry.scheme: entry for entry in self.entries if entry.matrix == matrix}


class Comparison(Document):
    """A classifier or a model that answers questions, held against itself in float32; see `Judge.compare`."""

    relative_error: float
    divergence: float
    same_answer: float
    loss: float | None


class Judge:
    """Float32's answers to some examples, which other programs' are held against.

    Args:
        programs: in float32.
        examples: with labels or without, at least `FEWEST`.
        labels: those of the training data.

    Raises:
        UserError: there are too few examples.
    """

    def __init__(
        self,
        programs: Programs,
        examples: Sequence[Example],
        tokenizer: WordPieceTokenizer,
        labels: Sequence[str] | LabelRange,
        recipe: Recipe,
    ):
        if len(examples) < FEWEST:
            raise UserError(f"{len(examples)} texts to compare on, at least {FEWEST} are needed; give more")
        self.task = get_task(recipe.task)
        self.examples, self.tokenizer, self.labels, self.recipe = examples, tokenizer, labels, recipe
        self.labelled = all(self.task.is_labelled(example) for example in examples)
        self.logits, self.masks, self.scores = self._run(programs)

    def _run(self, programs: Programs) -> tuple[list[np.ndarray], list[np.ndarray | None], np.ndarray | None]:
        """Every input's logits [exits, ...] and answer mask, and the examples' mean score at each exit."""
        logits: list[np.ndarray] = []
        masks: list[np.ndarray | None] = []

        def run(programs: Programs, items: Sequence[Item], on_step: OnStep):
            outputs = run_programs(programs, items, on_step)
            logits.extend(output.logits.astype(np.float64) for output in outputs)
            masks.extend(item.answer_mask for item in items)
            return outputs

        if not self.labelled:
            run(
                programs, self.task.items(self.examples, self.tokenizer, self.labels, self.recipe.input_options), silent
            )
            return logits, masks, None
        predictions = predict(run, programs, self.examples, self.tokenizer, self.labels, self.recipe)
        return logits, masks, predictions.score.mean(axis=0)

    def judge(self, programs: Programs, exit: int = -1) -> tuple[float, float | None]:
        """The mean divergence of an exit of other programs, in nats, and the score that it loses, None without labels."""
        logits, _, scores = self._run(programs)
        apart = [
            self.task.divergence(*(each[exit] for each in pair), mask)
            for *pair, mask in zip(self.logits, logits, self.masks)
        ]
        return float(np.mean(apart)), None if scores is None else float(self.scores[exit] - scores[exit])

    def compare(self, programs: Programs) -> Comparison:
        """The last exit of other programs in four numbers.

        Relative error of the logits (root mean square of the difference over theirs, of tokens that may be an answer), mean divergence in nats,
        the share of inputs with float32's answer (the label; of a window, the best start and the best end), and the score lost.
        """
        logits, _, scores = self._run(programs)
        rows = [
            (each[-1], got[-1]) if mask is None else (each[-1][mask], got[-1][mask])
            for each, got, mask in zip(self.logits, logits, self.masks)
        ]
        error = sum(float(np.square(got - each).sum()) for each, got in rows) / sum(
            float(np.square(each).sum()) for each, _ in rows
        )
        return Comparison(
            relative_error=error**0.5,
            divergence=float(np.mean([self.task.divergence(each, got) for each, got in rows])),
            same_answer=float(np.mean([(each.argmax(axis=0) == got.argmax(axis=0)).all() for each, got in rows])),
            loss=None if scores is None else float(self.scores[-1] - scores[-1]),
        )


def measure_sensitivity(
    programs: Programs,
    examples: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    labels: Sequence[str] | LabelRange,
    recipe: Recipe,
    schemes: Sequence[str] = MIX_CHOICES,
    on_step: OnStep = silent,
    rounded: Programs | None = None,
) -> tuple[Sensitivity, Judge]:
    """Quantizes each matrix alone by each scheme, and says how far the answers move; the judge knows float32's.

    That is every linear layer that schemes apply to and the word table, where their width allows the scheme. Layers and table are judged by
    the last exit; a head's matrices by its own, the only one that they touch.

    Args:
        programs: in float32.
        examples: of a split that nothing is promised about: thresholds that were tested on what chose the model would promise too much.
        rounded: the weights that int4 takes, as of `apply_scheme`.

    Raises:
        UserError: an unknown scheme, or too few examples.
    """
    for scheme in schemes:
        check_known(scheme, LINEAR_ARITHMETIC, "no scheme", "--schemes")
    judge = Judge(programs, examples, tokenizer, labels, recipe)
    shapes = shapes_of(programs)
    pairs = [(matrix, scheme) for matrix in shapes for scheme in schemes if fits(matrix, scheme, shapes[matrix][1])]
    entries = []
    for done, (matrix, scheme) in enumerate(pairs):
        on_step(f"{matrix} in {scheme}", done, len(pairs))
        alone = apply_schemes(programs, {matrix: scheme}, rounded)
        exit = int(matrix.split(".")[1]) if matrix.startswith("exits.") else -1
        apart, loss = judge.judge(alone, exit)
        entries.append(
            Entry(
                matrix=matrix, scheme=scheme, bytes=stored(matrix, scheme, shapes[matrix]), divergence=apart, loss=loss
            )
        )
    on_step("sensitivity", len(pairs), len(pairs))
    score = None if judge.scores is None else float(judge.scores[-1])
    return Sensitivity(
        task=recipe.task,
        metric=get_task(recipe.task).speed_metric,
        examples=len(examples),
        score=score,
        entries=entries,
    ), judge


def shapes_of(programs: Programs) -> dict[str, tuple[int, int]]:
    """Every matrix that has a scheme, the word table last: its outputs and inputs, or rows and width."""
    matrices = {name: linear.weight for name, linear in named_linears(programs).items()}
    return {
        name: tuple(weight.shape)
        for name, weight in (*matrices.items(), (WORD_TABLE_MATRIX, programs.embed.embeddings.word.weight))
    }


def fits(matrix: str, scheme: str, width: int) -> bool:
    """Whether a matrix so wide can have the scheme."""
    arithmetic = WORD_TABLE_ARITHMETIC if matrix == WORD_TABLE_MATRIX else LINEAR_ARITHMETIC
    return scheme in arithmetic and width % SCHEMES[scheme].group == 0


def stored(matrix: str, scheme: str, shape: tuple[int, int]) -> int:
    """The bytes that a matrix takes in a program."""
    target = word_table(scheme) if matrix == WORD_TABLE_MATRIX else linear_layers(scheme)
    return target.stored_bytes(*shape)
