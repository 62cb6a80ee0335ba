"""What each task defines. The rest of the project works with this interface and compares no task's name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from pipeline.data.items import Item
from pipeline.data.options import InputOptions
from pipeline.data.rows import Row
from pipeline.data.splits import Group
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.names import Metric, Task, Uncertainty
from pipeline.support.errors import UserError
from pipeline.tasks.types import (
    AnswerContext,
    Columns,
    Labels,
    Logits,
    ModelInput,
    ProgramMeasure,
    Request,
    Result,
    Walk,
)

if TYPE_CHECKING:
    from torch import Tensor

ExampleT = TypeVar("ExampleT")
InputT = TypeVar("InputT", bound=ModelInput)
DecodedT = TypeVar("DecodedT")


class TaskDefinition(ABC, Generic[ExampleT, InputT, DecodedT]):
    """One task. Instances hold no state: what differs between two models of a task comes as an argument.

    Attributes:
        name: what recipes and manifests call the task.
        title: what pages call it.
        metrics: the scores of a set of examples: JSON field -> heading of a table's column.
        headline: the metric that a page plots.
        speed_metric: the score of one example whose loss a named speed bounds.
        exit_outputs: what a segment's program gives beside hidden states and uncertainty, in order.
        head_family: a key of `pipeline.model.heads.HEADS`.
        heads: the kinds of head that fit, the one that a recipe's "default" stands for first.
        uncertainties: the measures that may decide at this task's exits.
        measures_uncertainty: whether programs have the output `uncertainty`; otherwise the runner derives it.
        uses_answer_mask: whether programs must be told which tokens may be an answer.
        cuts_into_windows: whether a long input becomes several (`qa.window`), and is not cut off (`data.max_length`).
        has_classes: whether labels are names of classes.
        predicts_number: whether the head gives a number in place of a distribution.
        answers_from_checkpoint: whether a fine-tuned Hugging Face checkpoint holds all that an answer takes.
        takes_unlabelled: whether plain texts are inputs of this task (`distill.unlabelled`).
        signal_level: the root mean square that noise in logits is compared with; None takes that of the logits.
        agreement_floor: the least share of examples to which a runtime must give the quantized PyTorch model's answer.
        agreement_floor_rounded: the same for schemes that round the inputs of matrices to int8.
        agreement_examples: how many examples that share is measured on, at most.
        examples_in_memory: how many examples' logits are held at a time; None for all of them.
        gives_candidates: whether a result can hold several scored answers (`top_k`).
        verb, needs: for messages: "this bundle VERB; give it NEEDS".
    """

    name: ClassVar[Task]
    title: ClassVar[str]
    metrics: ClassVar[Mapping[str, str]]
    headline: ClassVar[str]
    speed_metric: ClassVar[Metric]
    exit_outputs: ClassVar[tuple[str, ...]]
    head_family: ClassVar[str]
    heads: ClassVar[tuple[str, ...]]
    uncertainties: ClassVar[tuple[Uncertainty, ...]] = (
        "entropy",
        "max_probability",
        "margin",
        "patience",
        "agreement",
    )
    measures_uncertainty: ClassVar[bool] = True
    uses_answer_mask: ClassVar[bool] = False
    cuts_into_windows: ClassVar[bool] = False
    has_classes: ClassVar[bool] = False
    predicts_number: ClassVar[bool] = False
    answers_from_checkpoint: ClassVar[bool] = True
    takes_unlabelled: ClassVar[bool] = True
    signal_level: ClassVar[float | None] = None
    gives_candidates: ClassVar[bool] = False
    agreement_floor: ClassVar[float] = 0.995
    agreement_floor_rounded: ClassVar[float] = 0.995
    agreement_examples: ClassVar[int] = 2000
    examples_in_memory: ClassVar[int | None] = None
    verb: ClassVar[str]
    needs: ClassVar[str]

    # --- examples and labels ----------------------------------------------------------------------------------------

    @abstractmethod
    def examples_of_rows(self, source: str | Path, rows: Iterator[Row], columns: Columns) -> Iterator[ExampleT]:
        """Returns the examples in the rows of a table. UserError for a faulty row, or columns that cannot be found."""

    def examples_of_articles(self, path: Path, articles: list[Any]) -> Iterator[ExampleT]:
        """Returns the examples in the articles of a SQuAD document. UserError for a task that does not read SQuAD."""
        raise UserError(
            'this is SQuAD, questions on passages; set task to "qa", or name a classification file', file=path
        )

    @abstractmethod
    def example_from_json(self, raw: dict[str, Any]) -> ExampleT:
        """Returns the example that `dataclasses.asdict` turned into `raw`."""

    @abstractmethod
    def example_from_request(self, request: Request, bundle: Path | None = None) -> ExampleT:
        """Returns the example in a user's request to a bundle. UserError if something it needs is missing or blank."""

    @abstractmethod
    def request_of(self, example: ExampleT) -> Request:
        """Returns the request that asks for the example."""

    @abstractmethod
    def check(self, example: ExampleT) -> None:
        """UserError if a text of the example is blank."""

    @abstractmethod
    def load_demo(self) -> tuple[list[ExampleT], list[ExampleT]]:
        """Returns the embedded training and dev examples. UserError for a task that has none."""

    @abstractmethod
    def group(self, examples: Sequence[ExampleT]) -> list[Group]:
        """Returns groups of examples. A split keeps each group on one side."""

    @abstractmethod
    def same_input(self, example: ExampleT) -> Hashable:
        """Returns what is equal for two examples if they ask the same, whatever their case and whitespace."""

    def kept_together(self, example: ExampleT) -> Hashable:
        """Returns what is equal for two examples if no split may part them: their input, or the passage of both."""
        return self.same_input(example)

    def class_of(self, example: ExampleT) -> str | None:
        """Returns the example's class, None where labels are no classes."""
        return None

    @abstractmethod
    def labels_of(
        self,
        train: Sequence[ExampleT],
        dev: Sequence[ExampleT],
        dev_source: str,
        label_names: Sequence[str] | None,
        options: InputOptions,
    ) -> Labels:
        """Returns the labels of the training data.

        Args:
            dev_source: the file of the dev examples, for messages.
            label_names: what an app shows for each class, if the recipe says so.

        Raises:
            UserError: naming the recipe's field, where labels are missing, too few, or differ between train and dev.
        """

    @abstractmethod
    def is_labelled(self, example: ExampleT) -> bool:
        """Returns whether the example can be scored."""

    @abstractmethod
    def without_label(self, example: ExampleT) -> ExampleT:
        """Returns the same example without its label; unchanged where an example holds its own answers."""

    @abstractmethod
    def targets(
        self, examples: Sequence[ExampleT], context: AnswerContext, source: str | Path | None = None
    ) -> list[Any]:
        """Returns what `score` compares each example's answer with.

        Args:
            source: the examples' file, for messages.

        Raises:
            UserError: the examples are of another task, unlabelled, or have a label that the model lacks.
        """

    @abstractmethod
    def text_length(self, example: ExampleT) -> int:
        """Characters of the text that decides how long the input is."""

    @abstractmethod
    def shown(self, example: ExampleT) -> str:
        """Returns the example in one line for people."""

    # --- inputs -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, example: ExampleT, tokenizer: WordPieceTokenizer, options: InputOptions) -> Sequence[InputT]:
        """Returns the inputs of one example: one, or for question answering one per window."""

    def encode_all(
        self, examples: Sequence[ExampleT], tokenizer: WordPieceTokenizer, options: InputOptions
    ) -> list[Sequence[InputT]]:
        """Returns `encode` of each example; faster than one at a time where the tokenizer can use all cores."""
        return [self.encode(example, tokenizer, options) for example in examples]

    @abstractmethod
    def items(
        self, examples: Sequence[ExampleT], tokenizer: WordPieceTokenizer, labels: Labels, options: InputOptions
    ) -> list[Item]:
        """Returns what a model is trained on. UserError for a label that is not among `labels`."""

    @abstractmethod
    def has_text(self, example: ExampleT, tokenizer: WordPieceTokenizer) -> bool:
        """Returns whether no text of the example is blank, so that a runtime takes it."""

    @abstractmethod
    def longest_input(self, options: InputOptions) -> tuple[str, int]:
        """Returns the recipe's key for the longest input, and that length in tokens."""

    @abstractmethod
    def input_length(self, example: ExampleT, inputs: Sequence[InputT], tokenizer: WordPieceTokenizer) -> int:
        """Returns the length in tokens by which a report sorts examples."""

    @abstractmethod
    def set_lengths(self, raw: dict[str, Any], longest: int) -> None:
        """Sets what a recipe's tables `raw` do not say of lengths, for a model that takes `longest` tokens."""

    def options_problem(self, options: InputOptions) -> str | None:
        """Returns what is wrong with a recipe's lengths, as "field: what; the way out"; None if nothing is."""
        return None

    def manifest_problem(self, context: AnswerContext) -> tuple[str, str] | None:
        """Returns the manifest field that this task needs and lacks, and what is wrong with it; None if nothing is."""
        return None

    # --- tensors ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def head_outputs(self, classes: int) -> int:
        """Returns how many numbers a head gives for an input, or for a token where it answers token by token."""

    @abstractmethod
    def output_shapes(self, classes: int) -> dict[str, list[int | str]]:
        """Returns the shape of each of `exit_outputs` in a program, with "length" for the number of tokens."""

    @abstractmethod
    def split_logits(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Returns a head's logits as `exit_outputs`."""

    @abstractmethod
    def program_uncertainty(
        self, measure: ProgramMeasure, outputs: tuple[Tensor, ...], answer_bias: Tensor | None
    ) -> Tensor:
        """Returns a measure of these outputs, [batch].

        Args:
            outputs: as `split_logits` gives them, divided by the exit's temperature.
            answer_bias: [batch, length], 0 where a token may be an answer, else -1e4; for tasks with an answer mask.
        """

    @abstractmethod
    def distributions(self, logits: Tensor, answer_mask: Tensor | None) -> list[Tensor]:
        """Returns the logits of each distribution in a head's logits, in float32, classes last; empty for a number.

        Args:
            logits: [batch, ...], a head's.
            answer_mask: [batch, length] bool, for tasks that have one.
        """

    @abstractmethod
    def checkpoint_head(self, state: Mapping[str, Tensor], kind: str) -> tuple[str, dict[str, Tensor] | None]:
        """Returns the head for this task in a Hugging Face checkpoint: its kind, and its tensors by our names or None.

        Args:
            state: the checkpoint's tensors.
            kind: "bert" or "distilbert".
        """

    # --- answers ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def decode(
        self, example: ExampleT, inputs: Sequence[InputT], logits: Sequence[Logits], context: AnswerContext
    ) -> DecodedT:
        """Returns the answer at one exit, in the task's own form; `logits` has an entry for each input."""

    @abstractmethod
    def answer(self, decoded: DecodedT, context: AnswerContext) -> Hashable:
        """Returns what patience compares and reports list: a class's index, a number in the data's unit, a text.

        JSON must be able to hold it; what JSON turns into a list may be a tuple.
        """

    def decisive_input(self, inputs: Sequence[InputT], logits: Sequence[Logits], context: AnswerContext) -> int:
        """Returns the index of the input whose uncertainty is that of the example."""
        return 0

    @abstractmethod
    def result(
        self,
        example: ExampleT,
        inputs: Sequence[InputT],
        decoded: DecodedT,
        logits: Sequence[Logits],
        walk: Walk,
        tokenizer: WordPieceTokenizer,
        context: AnswerContext,
        top_k: int = 1,
    ) -> Result:
        """Returns what a runner gives for the example, with `top_k` candidates where the task gives any."""

    @abstractmethod
    def answer_of(self, result: Any) -> Hashable:
        """Returns a result's answer in the form of `answer`."""

    @abstractmethod
    def shown_answer(self, result: Any) -> str:
        """Returns a result's answer in a few words for people."""

    @abstractmethod
    def answer_fields(self, decoded: DecodedT, context: AnswerContext) -> dict[str, Any]:
        """Returns the answer as the fields of a conformance outcome."""

    # --- comparisons ------------------------------------------------------------------------------------------------

    @abstractmethod
    def score(self, decoded: DecodedT, target: Any, context: AnswerContext) -> tuple[float, float | None]:
        """Returns one answer's `speed_metric`, and 1 or 0 for right or wrong (None for a number)."""

    @abstractmethod
    def summarise(self, answers: Sequence[Any], targets: Sequence[Any]) -> dict[str, float | None]:
        """Returns the `metrics` of a set of examples from each one's `answer` and target."""

    @abstractmethod
    def measures(
        self, model_input: InputT, logits: np.ndarray, temperatures: Sequence[float] | None, options: InputOptions
    ) -> dict[str, np.ndarray]:
        """Returns every measure of uncertainty that logits alone give, by name, [exits] each.

        Args:
            logits: a head's for one input, [exits, ...].
            temperatures: what each exit's logits are divided by; None for 1.
        """

    @abstractmethod
    def divergence(self, reference: np.ndarray, logits: np.ndarray, answer_mask: np.ndarray | None = None) -> float:
        """Returns the Kullback-Leibler divergence of an answer from the reference's, in nats.

        Args:
            reference, logits: a head's for one input, without the batch.
            answer_mask: [length], tokens that may be an answer, where there is one; others do not count.
        """

    @abstractmethod
    def is_as_good(
        self,
        example: ExampleT,
        inputs: Sequence[InputT],
        logits: Sequence[Logits],
        answer: Any,
        context: AnswerContext,
        tolerance: float,
    ) -> bool:
        """Returns whether an answer is the best at these logits, or too close to it to be told apart.

        Args:
            answer: has the fields of `answer_fields` as attributes.
            tolerance: how far each logit may be off.
        """

    @abstractmethod
    def same_best(
        self,
        answer_mask: np.ndarray | None,
        expected: Logits,
        actual: Logits,
        slack: float,
        context: AnswerContext,
    ) -> bool:
        """Returns whether the best answer of `actual` scores at most `slack` below the best one in `expected`."""

    @abstractmethod
    def same_answer(self, result: Any, expected: Any, context: AnswerContext) -> bool:
        """Returns whether a runner's result is the expected `answer`, in which tuples may have become lists."""
