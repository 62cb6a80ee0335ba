"""Proposes a recipe for data files that nobody has prepared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.locate import locate
from pipeline.names import Task
from pipeline.recipe import Exits, Recipe, Teacher
from pipeline.recipe.files import parse_tables, recipe_of_tables
from pipeline.run.choices import Choices, choose
from pipeline.run.examples import data_warnings
from pipeline.run.proposal_text import kept_together, list_classes, proposal_text
from pipeline.run.survey import Survey, survey
from pipeline.support.errors import UserError
from pipeline.support.workspace import write_text
from pipeline.tasks.types import Columns

if TYPE_CHECKING:
    from pipeline.run.forecast import Forecast

FEWEST_OF_A_CLASS = 10  # examples to learn from; fewer teach a class badly
SHOWN_NAMES = 5


@dataclass(frozen=True)
class Proposal:
    """A recipe for a data file, and what it rests on.

    Attributes:
        text: the recipe as TOML, with a reason for each value.
        recipe: the same, checked.
        findings: what was found in the data, one sentence each.
        data_warnings: what the stage prepare will warn of again, one sentence each.
        warnings: these, and what else should be looked at.
        survey, choices: the numbers behind them.
    """

    text: str
    recipe: Recipe
    findings: tuple[str, ...]
    data_warnings: tuple[str, ...]
    warnings: tuple[str, ...]
    survey: Survey
    choices: Choices

    def forecast(self) -> Forecast:
        """Returns how long a run of the recipe takes on this machine."""
        from pipeline.run.forecast import forecast  # imports torch

        found = self.survey
        return forecast(self.recipe, len(found.train), len(found.dev), float(found.lengths.inputs.mean()))

    def to_json(self) -> dict[str, Any]:
        """Returns what `pocketbert init --json` prints, without the file and the time."""
        found = self.survey
        columns = {"text": found.columns.text, "text_pair": found.columns.text_pair, "label": found.columns.label}
        return {
            "name": found.name,
            "task": found.task,
            "columns": {key: column for key, column in columns.items() if column},
            "unused_columns": {column.name: column.kind for column in found.unused},
            "train": len(found.train),
            "dev": len(found.dev),
            "dev_is_split_off": found.dev_source is None,
            "classes": found.classes,
            "repeated": found.repeats.repeated,
            "contradicting": found.repeats.contradicting,
            "overlap": found.overlap,
            "median_tokens": found.lengths.at(0.5),
            "longest_tokens": int(found.lengths.inputs[-1]),
            "findings": list(self.findings),
            "warnings": list(self.warnings),
        }


def propose(
    train: str | Path, dev: str | Path | None = None, task: Task | None = None, columns: Columns | None = None
) -> Proposal:
    """Returns a recipe that fits data files.

    Args:
        train: a data file, the name of a hub data set, or "demo".
        dev: the same, to measure on; None to split it off.
        task: what the data are for; None to tell from the data.
        columns: columns that the user names; others are told from their content.

    Raises:
        UserError: a file cannot be read or holds too few examples, or its columns cannot be told.
    """
    tokenizer = WordPieceTokenizer.from_vocab(locate(Teacher().weights) / "vocab.txt")
    found = survey(str(train), None if dev is None else str(dev), task, columns or Columns(), tokenizer)
    chosen = choose(found, Exits().delta)
    text = proposal_text(found, chosen)
    file = Path(f"{found.name}.toml")
    recipe = recipe_of_tables(parse_tables(text, file), file)
    # Finds what the stage prepare would refuse.
    found.definition.labels_of(found.train, found.dev, recipe.data.dev, [], recipe.input_options)
    findings = tuple(_findings(found, chosen))
    doubtful = tuple(data_warnings(found.definition, found.train, found.dev, found.dev_source is None))
    return Proposal(text, recipe, findings, doubtful, (*doubtful, *_warnings(found, chosen)), found, chosen)


def write_proposal(proposal: Proposal, path: str | Path) -> None:
    """Writes the recipe to a new file.

    Raises:
        UserError: there is such a file, or it cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise UserError("exists; remove it, or give another file with --out", file=path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, proposal.text)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror}); give another file with --out", file=path) from None


def _findings(found: Survey, chosen: Choices) -> list[str]:
    """Returns what the data hold, in sentences."""
    task, columns = found.definition, found.columns
    examples = len(found.train) + (len(found.dev) if found.dev_source is None else 0)
    what = f"{task.title}: {examples:,} examples in {Path(found.train_source).name}"
    if columns.text:
        texts = f"{columns.text!r} and {columns.text_pair!r}" if columns.text_pair else f"{columns.text!r}"
        what += f", the text{'s' if columns.text_pair else ''} in {texts}, the label in {columns.label!r}"
    lines = [what + "."]
    if found.classes:
        lines.append(f"{len(found.classes)} classes to learn: {list_classes(found.classes)}.")
    if found.unused:
        lines.append("Not used: " + ", ".join(f"{column.name!r} ({column.kind})" for column in found.unused) + ".")
    if found.dev_source is None:
        lines.append(
            f"No file to measure on, so {len(found.dev):,} examples are held out; "
            f"{kept_together(found)} stay on one side."
        )
    else:
        lines.append(f"To measure on: {len(found.dev):,} examples in {Path(found.dev_source).name}.")
    if found.repeats.repeated:
        lines.append(f"Examples that repeat an earlier one, case and spaces aside: {found.repeats.repeated:,}.")
    lines.append(
        f"A median input has {found.lengths.at(0.5)} tokens, the longest {int(found.lengths.inputs[-1])}; "
        f"{'windows hold' if task.cuts_into_windows else 'inputs are cut at'} {chosen.max_length}."
    )
    promised = [f"{name} {loss:g}" for name, loss in _promised(chosen).items()]
    lines.append(
        f"{chosen.calibration:,} examples calibrate the speeds; the most that each may lose: "
        f"{', '.join(promised) or 'too few to promise any'}."
    )
    return lines


def _promised(chosen: Choices) -> dict[str, float]:
    names = zip(("exact", "balanced", "fast"), chosen.promises)
    return {name: loss for name, loss in names if name not in chosen.missing}


def _warnings(found: Survey, chosen: Choices) -> list[str]:
    """Returns what else the user should look at, in sentences."""
    lines = []
    if alike := _alike(list(found.classes)):
        lines.append(f"labels that differ in case or spaces alone are different classes: {alike}; write them alike")
    rare = [name for name, count in found.classes.items() if count < FEWEST_OF_A_CLASS]
    if rare:
        shown = ", ".join(rare[-SHOWN_NAMES:])
        lines.append(
            f"{len(rare)} classes have fewer than {FEWEST_OF_A_CLASS} examples to learn from ({shown}); "
            "give more, or leave them out"
        )
    for name, missing in chosen.missing.items():
        lines.append(f"the speed {name} is left out; {missing:,} more calibration examples would show its promise")
    return lines


def _alike(labels: Sequence[str]) -> str:
    """Returns the labels that differ only in case and whitespace, in words; empty if there are none."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        spellings["".join(label.casefold().split())].append(repr(label))
    return "; ".join(" and ".join(group) for group in spellings.values() if len(group) > 1)
