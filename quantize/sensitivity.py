"""Measures what each matrix loses when it alone has fewer bits: the divergence from float32, and the score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from pipeline.data.examples import Example
from pipeline.data.items import Item
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.exits.predictions import ExitOutputs, predict, run_programs
from pipeline.model.segments import Programs
from pipeline.names import Metric, Task
from pipeline.recipe import Recipe
from pipeline.schemes import MIX_CHOICES, SCHEMES, WORD_TABLE_MATRIX, linear_layers, word_table
from pipeline.support.document import Document
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import Labels, get_task
from quantize.schemes import LINEAR_ARITHMETIC, WORD_TABLE_ARITHMETIC, apply_schemes, check_known, named_linears

MIN_EXAMPLES = 16  # with fewer, a single text could decide about a matrix


class Entry(Document):
    """What one matrix loses in one scheme, with all others in float32."""

    matrix: str = Field(description="a name of `quantize.schemes.named_linears`, or embeddings.word")
    scheme: str
    bytes: int = Field(description="bytes of the matrix in a program")
    divergence: float = Field(
        description="of its exit from float32's, mean over the inputs, in nats; see `TaskDefinition.divergence`"
    )
    loss: float | None = Field(description="score lost at that exit, a fraction of 1; null without labels")


class Sensitivity(Document):
    """What `pocketbert sensitivity --json` prints."""

    task: Task
    metric: Metric
    examples: int
    score: float | None = Field(description="score of the last exit in float32; null without labels")
    entries: list[Entry]

    def of(self, matrix: str) -> dict[str, Entry]:
        """Returns a matrix's entries by scheme."""
        return {entry.scheme: entry for entry in self.entries if entry.matrix == matrix}


class Comparison(Document):
    """How far a classifier's or question answerer's last exit is from float32.

    Attributes:
        relative_error: the root mean square of the logits' difference over that of float32's; only tokens that may be
            in an answer count.
        divergence: mean over the inputs, in nats.
        same_answer: share of inputs with float32's answer: its label, or a window's best start and best end.
        loss: score lost, a fraction of 1; None without labels.
    """

    relative_error: float
    divergence: float
    same_answer: float
    loss: float | None


class Judge:
    """Compares programs with float32 on some examples. It keeps float32's outputs.

    Args:
        programs: in float32.
        examples: with labels or without, at least `MIN_EXAMPLES`.
        labels: those of the training data.

    Raises:
        UserError: there are too few examples.
    """

    def __init__(
        self,
        programs: Programs,
        examples: Sequence[Example],
        tokenizer: WordPieceTokenizer,
        labels: Labels,
        recipe: Recipe,
    ):
        if len(examples) < MIN_EXAMPLES:
            raise UserError(f"{len(examples)} texts to compare on, at least {MIN_EXAMPLES} are needed; give more")
        self.task = get_task(recipe.task)
        self.examples, self.tokenizer, self.labels, self.recipe = examples, tokenizer, labels, recipe
        self.labelled = all(self.task.is_labelled(example) for example in examples)
        self.logits, self.masks, self.scores = self._run(programs)

    def _run(self, programs: Programs) -> tuple[list[np.ndarray], list[np.ndarray | None], np.ndarray | None]:
        """Returns the logits [exits, ...] and the answer mask of each input, and the mean score at each exit."""
        logits: list[np.ndarray] = []
        masks: list[np.ndarray | None] = []

        def run(programs: Programs, items: Sequence[Item], on_step: OnStep) -> list[ExitOutputs]:
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
        """Returns the mean divergence of an exit from float32, in nats, and the score it loses (None without labels).

        Args:
            exit: the exit's index, counted from 0; the last by default.
        """
        logits, _, scores = self._run(programs)
        divergences = [
            self.task.divergence(reference[exit], outputs[exit], mask)
            for reference, outputs, mask in zip(self.logits, logits, self.masks)
        ]
        return float(np.mean(divergences)), self._score_lost(scores, exit)

    def compare(self, programs: Programs) -> Comparison:
        """Returns how far the last exit of other programs is from float32."""
        logits, _, scores = self._run(programs)
        pairs = [
            (reference[-1], outputs[-1]) if mask is None else (reference[-1][mask], outputs[-1][mask])
            for reference, outputs, mask in zip(self.logits, logits, self.masks)
        ]
        noise = sum(float(np.square(outputs - reference).sum()) for reference, outputs in pairs)
        signal = sum(float(np.square(reference).sum()) for reference, _ in pairs)
        return Comparison(
            relative_error=(noise / signal) ** 0.5,
            divergence=float(np.mean([self.task.divergence(reference, outputs) for reference, outputs in pairs])),
            same_answer=float(
                np.mean([(reference.argmax(axis=0) == outputs.argmax(axis=0)).all() for reference, outputs in pairs])
            ),
            loss=self._score_lost(scores, -1),
        )

    def _score_lost(self, scores: np.ndarray | None, exit: int) -> float | None:
        """Returns the score that an exit loses against float32; None without labels."""
        return None if scores is None or self.scores is None else float(self.scores[exit] - scores[exit])


def measure_sensitivity(
    programs: Programs,
    examples: Sequence[Example],
    tokenizer: WordPieceTokenizer,
    labels: Labels,
    recipe: Recipe,
    schemes: Sequence[str] = MIX_CHOICES,
    on_step: OnStep = silent,
    rounded: Programs | None = None,
) -> tuple[Sensitivity, Judge]:
    """Quantizes each matrix alone with each scheme and measures how far the answers move.

    The matrices are all linear layers that schemes apply to, and the word table, where their width fits the scheme.
    Layers and table are judged by the last exit. A head's matrices are judged by its own exit, the only one that they
    touch.

    Args:
        programs: in float32.
        examples: examples of a split that no guarantee is tested on. Thresholds tested on what chose the model would
            promise too much.
        rounded: the weights that int4 takes, as of `apply_scheme`.

    Returns:
        the measurements, and the judge that made them.

    Raises:
        UserError: a scheme is unknown, or there are too few examples.
    """
    for scheme in schemes:
        check_known(scheme, LINEAR_ARITHMETIC, "no scheme", "--schemes")
    judge = Judge(programs, examples, tokenizer, labels, recipe)
    shapes = matrix_shapes(programs)
    pairs = [(matrix, scheme) for matrix in shapes for scheme in schemes if fits(matrix, scheme, shapes[matrix][1])]
    entries = []
    for done, (matrix, scheme) in enumerate(pairs):
        on_step(f"{matrix} in {scheme}", done, len(pairs))
        alone = apply_schemes(programs, {matrix: scheme}, rounded)
        exit = int(matrix.split(".")[1]) if matrix.startswith("exits.") else -1
        moved, loss = judge.judge(alone, exit)
        entries.append(
            Entry(
                matrix=matrix,
                scheme=scheme,
                bytes=matrix_bytes(matrix, scheme, shapes[matrix]),
                divergence=moved,
                loss=loss,
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


def matrix_shapes(programs: Programs) -> dict[str, tuple[int, int]]:
    """Returns the shape of every matrix that schemes apply to, the word table, [rows, width], last."""
    weights = {name: linear.weight for name, linear in named_linears(programs).items()}
    weights[WORD_TABLE_MATRIX] = programs.embed.embeddings.word.weight
    return {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}


def fits(matrix: str, scheme: str, width: int) -> bool:
    """Returns whether a matrix of a width can have a scheme."""
    arithmetic = WORD_TABLE_ARITHMETIC if matrix == WORD_TABLE_MATRIX else LINEAR_ARITHMETIC
    return scheme in arithmetic and width % SCHEMES[scheme].group == 0


def matrix_bytes(matrix: str, scheme: str, shape: tuple[int, int]) -> int:
    """Returns the bytes of a matrix in an ExecuTorch program."""
    target = word_table(scheme) if matrix == WORD_TABLE_MATRIX else linear_layers(scheme)
    return target.stored_bytes(*shape)
