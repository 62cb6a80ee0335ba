"""Looks at data files before there is a recipe: what task they are for, and what is in them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.data.columns import Column
from pipeline.data.duplicates import Repeats, count_overlap, count_repeats
from pipeline.data.files import open_data
from pipeline.data.guess import GuessedColumns, guess_columns
from pipeline.data.hub import hub_name
from pipeline.data.lengths import Lengths, measure_lengths
from pipeline.data.questions import ANSWER_COLUMNS, PASSAGE_COLUMNS, QUESTION_COLUMNS
from pipeline.data.rows import Row, find_column
from pipeline.data.splits import split_dev
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.names import Task
from pipeline.recipe import Data
from pipeline.run.examples import DEMO
from pipeline.support.errors import UserError
from pipeline.tasks import AnyTask, fitting_task, get_task
from pipeline.tasks.reading import read_examples
from pipeline.tasks.types import Columns

# Names of files that say what part of a data set they are, and not which data set.
PART_NAMES = (
    "train", "training", "trainset", "data", "dataset", "all", "full", "subset", "sample", "examples", "labels",
    "labelled", "labeled", "export", "input", "of",
)  # fmt: skip
ROWS_TO_LOOK_AT = 20_000  # they tell what each column holds
TEXTS_TO_MEASURE = 5_000  # they tell how long texts are


@dataclass(frozen=True)
class Survey:
    """What was found in the data.

    Attributes:
        name: the data set's, from the name of its file.
        task: what it is for.
        train_source, dev_source: the files as the user names them; None where dev is split off.
        columns: the columns by name; empty names for question answering, which has its own.
        unused: the other columns.
        train, dev: the examples, after dev was split off.
        classes: examples of each class in the file of train, the most frequent first; empty without classes.
        repeats: inputs that occur more than once in the file of train.
        overlap: dev examples whose input is in train too.
        lengths: of the inputs of train, in tokens.
    """

    name: str
    task: Task
    train_source: str
    dev_source: str | None
    columns: Columns
    unused: tuple[Column, ...]
    train: list[Any]
    dev: list[Any]
    classes: dict[str, int]
    repeats: Repeats
    overlap: int
    lengths: Lengths

    @property
    def definition(self) -> AnyTask:
        """The definition of the task."""
        return get_task(self.task)


def survey(train: str, dev: str | None, task: Task | None, columns: Columns, tokenizer: WordPieceTokenizer) -> Survey:
    """Reads data files and measures what a recipe depends on.

    Args:
        train, dev: files, names of hub data sets, or "demo"; no dev means to split it off.
        task: what the data are for; None to tell from the data.
        columns: the columns that the user names.
        tokenizer: counts tokens as the student will.

    Raises:
        UserError: a file cannot be read, an example is malformed, or the columns cannot be told from their content.
    """
    unused: tuple[Column, ...] = ()
    if train == DEMO:
        definition = get_task(task) if task else fitting_task(articles=False, numbers=False)
        examples, dev_examples = definition.load_demo()
        found, dev = columns, dev or DEMO
    else:
        definition, found, unused = _identify(train, task, columns)
        examples = _read(train, definition, found)
        dev_examples = [] if dev is None else _read(dev, definition, found)
    repeats = count_repeats(*_inputs_and_classes(definition, examples))
    counts = Counter(value for value in map(definition.class_of, examples) if value is not None)
    if dev is None:
        together = [definition.kept_together(example) for example in examples]
        classes = [definition.class_of(example) for example in examples]
        examples, dev_examples = split_dev(examples, together, classes, Data().dev_share, seed=0)
    return Survey(
        name=name_of_data(train, definition.name),
        task=definition.name,
        train_source=train,
        dev_source=dev,
        columns=found,
        unused=unused,
        train=examples,
        dev=dev_examples,
        classes=dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))),
        repeats=repeats,
        overlap=count_overlap(
            [definition.same_input(example) for example in examples],
            [definition.same_input(example) for example in dev_examples],
        ),
        lengths=measure_lengths(_sample(examples), tokenizer),
    )


def name_of_data(source: str, task: str) -> str:
    """Returns a name for a run from its training data: the file's, or its folder's if the file's says `train` only."""
    if source == DEMO:
        return f"{DEMO}-{task}"
    hub = None if Path(source).exists() else hub_name(source)
    if hub:
        names = [*([hub["config"]] if hub["config"] else []), *reversed(hub["name"].split("/"))]
    else:
        path = Path(source).expanduser().absolute()
        names = [path.name.split(".")[0], path.parent.name]
    for name in names:
        words = [word for word in re.split(r"[\W_\d]+", name.casefold()) if word]
        if words and not all(word in PART_NAMES for word in words):
            return _sanitise(name) or "data"
    return _sanitise(names[0]) or "data"


def _sanitise(name: str) -> str:
    """Returns a name with only the characters that a recipe's name may have."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-.")


def _identify(source: str, task: Task | None, given: Columns) -> tuple[AnyTask, Columns, tuple[Column, ...]]:
    """Returns the task of a file, its columns, and the columns that are not used."""
    content = open_data(source)
    if content.articles is not None:
        return get_task(task) if task else fitting_task(articles=True, numbers=False), Columns(), ()
    rows = list(islice(content.rows, ROWS_TO_LOOK_AT))
    if not rows:
        raise UserError("the file holds no examples; give one with at least one", file=source)
    definition = get_task(task) if task else None
    if definition is None and _asks_questions(source, rows):
        definition = fitting_task(articles=True, numbers=False)
    if definition is not None and definition.cuts_into_windows:
        return definition, Columns(), ()
    numbers = None if definition is None else definition.predicts_number
    guess: GuessedColumns = guess_columns(source, rows, numbers, given.text, given.text_pair, given.label)
    found = Columns(guess.text, guess.text_pair or "", guess.label)
    return definition or fitting_task(articles=False, numbers=guess.numbers), found, guess.unused


def _asks_questions(source: str, rows: Sequence[Row]) -> bool:
    """Returns whether a table has the columns of question answering."""
    columns = list(rows[0].values)
    return all(find_column(source, columns, names) for names in (QUESTION_COLUMNS, PASSAGE_COLUMNS, ANSWER_COLUMNS))


def _read(source: str, definition: AnyTask, columns: Columns) -> list[Any]:
    if source == DEMO:
        return list(definition.load_demo()[1])
    return read_examples(source, definition.name, text=columns.text, text_pair=columns.text_pair, label=columns.label)


def _inputs_and_classes(definition: AnyTask, examples: Sequence[Any]) -> tuple[list[Any], list[str | None]]:
    return [definition.same_input(example) for example in examples], [
        definition.class_of(example) for example in examples
    ]


def _sample(examples: Sequence[Any]) -> list[Any]:
    """Returns examples spread over the whole file, which may be sorted."""
    step = max(1, len(examples) // TEXTS_TO_MEASURE)
    return list(examples[::step])
