"""The examples of a run: read from where the recipe says, sampled, and kept as JSON lines."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.content import exists
from pipeline.data.duplicates import count_overlap, count_repeats
from pipeline.data.examples import Example
from pipeline.data.items import Item
from pipeline.data.splits import split_dev
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.names import Task
from pipeline.recipe import Recipe
from pipeline.support.errors import Problems, UserError
from pipeline.tasks import AnyTask, Labels, get_task
from pipeline.tasks.reading import read_examples

DEMO = "demo"  # the source that stands for the embedded data
SPLIT = "split"  # the source of dev examples that stands for a part of the training data


def read_train_and_dev(recipe: Recipe, problems: Problems) -> tuple[list[Example], list[Example]] | None:
    """Reads the recipe's training and dev examples, and holds dev out of train where the recipe says so.

    Args:
        recipe: names the sources.
        problems: gets what is wrong with each of them: a source cannot be read, an example in it is malformed, or
            nothing can be held out.

    Returns:
        None if something is wrong.
    """
    train = problems.attempt(lambda: read_source(recipe, "train"))
    if recipe.data.dev != SPLIT:
        dev = problems.attempt(lambda: read_source(recipe, "dev"))
        return None if train is None or dev is None else (train, dev)
    return None if train is None else problems.attempt(lambda: hold_out_dev(recipe, train))


def hold_out_dev(recipe: Recipe, examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """Splits examples into train and dev. Raises UserError if nothing can be held out."""
    task = get_task(recipe.task)
    train, dev = split_dev(
        examples,
        [task.kept_together(example) for example in examples],
        [task.class_of(example) for example in examples],
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
        try:
            examples = read_labelled(source, recipe.task, data.text, data.text_pair, data.label)
        except UserError as error:
            if error.settings or len(error.errors) > 1 or exists(Path(source)):
                raise
            raise UserError(
                error.message, file=error.file, field=error.field, settings=other_source(source, part)
            ) from None
    return sample_examples(examples, limit, recipe.seed)


def other_source(source: str, part: str) -> list[str]:
    """Returns a setting for a source that does not exist: a file with nearly its name, or for dev a part of train."""
    path = Path(source)
    names = [file.name for file in path.parent.iterdir() if file.is_file()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    if near:
        return [f"data.{part}={path.with_name(near[0])}"]
    return ["data.dev=split"] if part == "dev" else []


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


def read_calibration(recipe: Recipe, source: str) -> list[Example]:
    """Reads the file of calibration examples.

    Raises:
        UserError: the source cannot be read, an example in it is malformed, or one has no label.
    """
    data, is_labelled = recipe.data, get_task(recipe.task).is_labelled
    examples = read_labelled(source, recipe.task, data.text, data.text_pair, data.label)
    without = sum(not is_labelled(example) for example in examples)
    if without:
        raise UserError(
            f"{without} of {len(examples)} examples have no label; a speed's loss is tested on labelled examples",
            file=source,
            field="data.calibration",
        )
    return examples


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


def data_warnings(task: AnyTask, train: Sequence[Example], dev: Sequence[Example], split: bool) -> list[str]:
    """Returns what makes scores on these examples misleading, one sentence each: overlap and contradicting labels.

    Args:
        split: whether dev was held out of train, so that both are of one file.
    """
    inputs = [task.same_input(example) for example in train]
    dev_inputs = [task.same_input(example) for example in dev]
    file = [*train, *dev] if split else train
    repeats = count_repeats([*inputs, *dev_inputs] if split else inputs, [task.class_of(example) for example in file])
    overlap = count_overlap(inputs, dev_inputs)
    warnings = []
    if overlap:
        warnings.append(
            f"{overlap:,} of {len(dev):,} dev examples are in train too, case and spaces aside, so scores on dev will "
            "be too good; remove them from one file"
        )
    if repeats.contradicting:
        warnings.append(
            f"{repeats.contradicting:,} texts occur in train more than once with different labels; "
            "no model can learn both"
        )
    return warnings
