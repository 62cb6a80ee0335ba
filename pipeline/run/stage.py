"""What a stage of a run is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.recipe import Recipe
from pipeline.run.results import Results
from pipeline.support.progress import OnStep
from pipeline.support.workspace import StageFolder

Build = Callable[[Results, StageFolder, OnStep], None]


def always(recipe: Recipe) -> bool:
    """Returns true: most stages belong to every recipe."""
    return True


def no_inputs(recipe: Recipe) -> object:
    """Returns None: most stages depend on the recipe and on earlier stages alone."""
    return None


@dataclass(frozen=True)
class Stage:
    """One step of a run, from its inputs to a folder of results.

    A result counts as done as long as everything that went into it is unchanged: the sections of the recipe, the
        inputs, the version
    of the stage, and all of this for the stages before it.

    Attributes:
        name: the command that runs the stage.
        folder: the name of its folder in the output folder.
        after: the stages whose results it reads.
        sections: the parts of the recipe that it reads.
        build: does the work and writes the results into `StageFolder.out`.
        wanted: returns whether a recipe has this stage. A stage that it does not have is skipped as if it did not
            exist.
        trains: whether all processes of a run take part. Other stages run in the main process alone.
        version: is raised when a change of the code changes the results, so that older results are made again.
        early: is called when the stage `early_during` begins, to start work of this stage that can be done meanwhile.
        early_during: the name of an earlier stage that leaves a core idle.
        inputs: returns what else the results depend on, as JSON data: the contents of files, and what later sections
            ask for.
    """

    name: str
    folder: str
    after: tuple[str, ...]
    sections: tuple[str, ...]
    build: Build
    wanted: Callable[[Recipe], bool] = always
    trains: bool = False
    version: int = 1
    inputs: Callable[[Recipe], object] = no_inputs
    early: Callable[[Recipe], object] = no_inputs
    early_during: str | None = None
