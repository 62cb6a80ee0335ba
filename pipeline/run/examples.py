"""The examples of a run: read from where the recipe says, sampled, and kept as JSON lines."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pipeline.data.duplicates import count_overlap, count_repeats
from pipeline.data.examples import Example
from pipeline.data.items import Item
from pipeline.data.splits import split_dev
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.names import Task
from pipeline.recipe import Recipe
from pipeline.tasks import AnyTask, Labels, get_task
from pipeline.tasks.reading import read_examples

DEMO = "demo"  # the source that stands for the embedded data
SPLIT = "split"  # the source of dev examples that stands for a part of the training data


def read_train_and_dev(recipe: Recipe) -> tuple[list[Example], list[Example]]:
    """Reads the recipe's training and dev examples, and holds dev out of train where the recipe says so.

    Raises:
        UserError: a source cannot be read, an example in it is malformed, or nothing can be held out.
    """
    train = read_source(recipe, "train")
    if recipe.data.dev != SPLIT:
        return train, read_source(recipe, "dev")
    task = get_task(recipe.task)
    train, dev = split_dev(
        train,
        [task.kept_together(example) for example in train],
        [task.class_of(example) for example in train],
        recipe.data.dev_share,
        recipe.seed,
    )
    return train, sample_examples(dev, recipe.data.dev_limit, recipe.seed)


def read_source(recipe: Recipe, part: str) -> list[Example]:
    """Reads the recipe's examples from the embedded data, a file, or a hub set.

    Args:
        recipe: names the source, its columns, and the limit on the number of examples.
        part: "train" or "dev".

    Raises:
        UserError: the source cannot be read, or an example in it is malformed.
    """
    data = recipe.data
    source, limit = getattr(data, part), getattr(data, f"{part}_limit")
    if source == DEMO:
        examples = get_task(recipe.task).load_demo()[0 if part == "train" else 1]
    else:
        examples = read_labelled(source, recipe.task, data.text, data.text_pair, data.label)
    return sample_examples(examples, limit, recipe.seed)


def read_labelled(source: str, task: Task, text: str | None, text_pair: str | None, label: str | None) -> list[Example]:
    """Reads labelled examples from a file or a hub set, or the embedded dev examples for "demo".

    Args:
        source: a file, the name of a hub set, or "demo".
        task: says what an example is.
        text, text_pair, label: names of columns; those that are None are guessed from the header.

    Raises:
        UserError: the source cannot be read, or an example in it is malformed.
    """
    if source == DEMO:
        return get_task(task).load_demo()[1]
    return read_examples(source, task, text=text, text_pair=text_pair, label=label)


def read_unlabelled(recipe: Recipe) -> list[Example]:
    """Reads the texts of `distill.unlabelled` without their labels; returns none if the recipe names no source."""
    source, data = recipe.distill.unlabelled, recipe.data
    if source is None:
        return []
    return read_examples(source, recipe.task, text=data.text, text_pair=data.text_pair, label="")


def sample_examples(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """Returns at most `limit` examples, drawn from the whole file because files are often sorted."""
    if limit is None or len(examples) <= limit:
        return examples
    return random.Random(seed).sample(examples, limit)


def training_items(
    examples: Sequence[Example], tokenizer: WordPieceTokenizer, labels: Labels, recipe: Recipe
) -> list[Item]:
    """Returns what a model is trained on, by the recipe's task and lengths."""
    return get_task(recipe.task).items(examples, tokenizer, labels, recipe.input_options)


def data_warnings(task: AnyTask, train: Sequence[Example], dev: Sequence[Example]) -> list[str]:
    """Returns what makes scores on these examples misleading, one sentence each: overlap and contradicting labels."""
    train_inputs = [task.same_input(example) for example in train]
    overlap = count_overlap(train_inputs, [task.same_input(example) for example in dev])
    repeats = count_repeats(train_inputs, [task.class_of(example) for example in train])
    warnings = []
    if overlap:
        warnings.append(
            f"{overlap:,} of {len(dev):,} dev examples are in train too (case and spaces aside), "
            "so scores on dev are too good; remove them from one file"
        )
    if repeats.contradicting:
        warnings.append(
            f"{repeats.contradicting:,} texts stand in train more than once with different labels; "
            "no model can learn both"
        )
    return warnings
