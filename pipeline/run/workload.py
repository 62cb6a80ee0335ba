"""What a recipe asks of the machine: shapes, lengths and numbers of examples, without a model or a tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.examples import Example
from pipeline.recipe import Recipe
from pipeline.run.preconditions import calibration_count
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

if TYPE_CHECKING:
    from pipeline.model.encoder import EncoderConfig

CHARACTERS_PER_TOKEN = 4.2  # of WordPiece in English texts, punctuation included
SAMPLED_EXAMPLES = 500  # to find the mean length
QUESTION_TOKENS = 15  # of a question and the special tokens, when a passage is cut into windows
LABELS = 3  # of a classifier; the head's cost hardly depends on it


@dataclass(frozen=True)
class Workload:
    """What a recipe asks of the machine.

    Attributes:
        teacher: the teacher's shape.
        student: the student's shape.
        exit_layers: the student's layers that an exit follows.
        length: tokens of a mean input.
        windows: inputs of a mean example.
        train, calibration, dev: number of examples.
        unlabelled: number of texts without labels that the student learns from too.
    """

    recipe: Recipe
    teacher: EncoderConfig
    student: EncoderConfig
    exit_layers: tuple[int, ...]
    length: int
    windows: float
    train: int
    calibration: int
    dev: int
    unlabelled: int = 0

    def operations(self, config: EncoderConfig, length: int | None = None) -> float:
        """Returns the operations of a model's layers for one input."""
        from pipeline.model.flops import layer_flops

        return float(config.layers * layer_flops(config, length or self.length))

    def head_operations(self) -> float:
        """Returns the operations of all exit heads of the student for one input."""
        from pipeline.model.flops import head_flops

        recipe = self.recipe
        head = head_flops(recipe.task, recipe.head, self.student, LABELS, self.length)
        return float(len(self.exit_layers) * head)


def describe_work(recipe: Recipe, train_examples: int, dev_examples: int, mean_tokens: float) -> Workload:
    """Returns what a recipe asks of the machine; the arguments are those of `forecast`."""
    from pipeline.distill.student import chosen_exits, chosen_layers

    teacher = teacher_shape(recipe.teacher.weights)
    try:
        student = teacher.with_(layers=len(chosen_layers(teacher.layers, recipe.student.layers)))
        exit_layers = tuple(chosen_exits(student.layers, recipe.student.exit_layers))
    except UserError:  # the stage distill says what is wrong
        student, exit_layers = teacher, (teacher.layers,)
    task = get_task(recipe.task)
    longest = task.longest_input(recipe.input_options)[1]
    windows, length = 1.0, min(mean_tokens, longest)
    if task.cuts_into_windows and mean_tokens > longest:
        step = max(1, longest - QUESTION_TOKENS - recipe.qa.stride)
        windows = 1.0 + math.ceil((mean_tokens - longest) / step)
    train = min(train_examples, recipe.data.train_limit or train_examples)
    is_file = isinstance(recipe.data.calibration, str)  # then nothing is taken out of train
    calibration = 0 if is_file else min(calibration_count(recipe, train), train // 2)
    return Workload(
        recipe=recipe,
        teacher=teacher,
        student=student,
        exit_layers=exit_layers,
        length=max(2, round(length)),
        windows=windows,
        train=train - calibration,
        calibration=calibration,
        dev=min(dev_examples, recipe.data.dev_limit or dev_examples),
        unlabelled=count_lines(recipe.distill.unlabelled),
    )


def count_lines(source: str | None) -> int:
    """Returns the lines of a file of texts; 0 without one, or for the name of a data set."""
    if source is None or not Path(source).is_file():
        return 0
    with open(source, "rb") as stream:
        return sum(1 for _ in stream)


def teacher_shape(weights: str) -> EncoderConfig:
    """Returns the shape of a checkpoint from its config.json; that of BERT-base if it is not on this machine yet."""
    from pipeline.model.locate import locate
    from pipeline.model.pretrained import encoder_config
    from pipeline.model.weights import read_json
    from quantize.size import BERT_BASE

    try:
        if weights == "minilm" or Path(weights).is_dir():
            file = locate(weights) / "config.json"
        else:
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(weights, "config.json")
            if not isinstance(cached, str):
                return BERT_BASE
            file = Path(cached)
        return encoder_config(read_json(file), file)
    except (UserError, ValueError):  # the stage finetune says what is wrong
        return BERT_BASE


def estimate_tokens(examples: Sequence[Example], recipe: Recipe) -> float:
    """Returns about how many tokens an example has, by its characters: no vocabulary is needed."""
    task = get_task(recipe.task)
    sample = examples[:: max(1, len(examples) // SAMPLED_EXAMPLES)]
    total = 0.0
    for example in sample:
        request = task.request_of(example)
        texts = (request.text, request.text_pair, request.question, request.passage)
        total += 1 + sum(1 + len(text) / CHARACTERS_PER_TOKEN for text in texts if text)
    return total / len(sample) if sample else 2.0


def corpus_blocks(recipe: Recipe) -> int | None:
    """Returns about how many blocks of text a recipe pre-trains on; None if the corpus is not on this machine."""
    options = recipe.pretrain
    corpus = Path(options.corpus or "")
    files = [corpus] if corpus.is_file() else [path for path in corpus.rglob("*") if path.is_file()]
    if not files:
        return options.limit
    blocks = int(sum(path.stat().st_size for path in files) / CHARACTERS_PER_TOKEN / options.length)
    return min(blocks, options.limit or blocks)
