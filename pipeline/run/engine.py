"""Runs the stages of a recipe in order and skips those whose results are already there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.recipe import Recipe, Section
from pipeline.run.results import Results
from pipeline.run.stage import Stage
from pipeline.run.table import STAGES, stages_up_to
from pipeline.run.target import recipe_of
from pipeline.support import processes
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, console, progress
from pipeline.support.workspace import StageFolder, Workspace, digest_of


class Run:
    """A recipe and the output folder that its stages fill.

    Args:
        recipe: says what every stage does.
        out: the output folder; it is created.
        base: another run. A stage that went in there exactly as it would here is not run again: its result is shared.
    """

    def __init__(self, recipe: Recipe, out: str | Path, base: Run | None = None):
        self.recipe, self.base = recipe, base
        self.workspace = Workspace(out)
        self.results = Results(
            recipe, tuple(name for name, stage in STAGES.items() if stage.wanted(recipe)), self.path, self.seconds
        )
        self._shared: dict[str, bool] = {}

    def shares(self, name: str) -> bool:
        """Returns whether the result of a stage is the base run's."""
        if self.base is None:
            return False
        if name not in self._shared:  # kept, since the answer takes reading the whole result
            folder = STAGES[name].folder
            self._shared[name] = self.base.results.has(name) and self.base.workspace.is_done(
                folder, self.stage_key(name)
            )
        return self._shared[name]

    def path(self, name: str) -> Path:
        """Returns the folder of a stage's result, in this run or in the base run that shares it."""
        workspace = self.base.workspace if self.base is not None and self.shares(name) else self.workspace
        return workspace.folder(STAGES[name].folder)

    def seconds(self, name: str) -> float | None:
        """Returns how long a stage took in this run; None if it has not finished here."""
        record = self.workspace.record(STAGES[name].folder)
        return float(record["seconds"]) if record else None

    def stage_key(self, name: str) -> str:
        """Returns the digest of everything that goes into a stage. A result whose key differs is made again."""
        stage = STAGES[name]
        sections = [getattr(self.recipe, section) for section in stage.sections]
        values = [section.key_values() if isinstance(section, Section) else section for section in sections]
        before = [self.stage_key(earlier) for earlier in stage.after if self.results.has(earlier)]
        return digest_of(name, stage.version, values, stage.inputs(self.recipe), before)

    def run_up_to(self, last: str) -> None:
        """Runs a stage and everything that it needs, skips what is done, and prints the time of each.

        Several processes take part up to the last training stage; after it the main process goes on alone. The others
        would keep cores busy while they wait, which would distort what is measured.
        """
        order = stages_up_to(last, self.recipe)
        shared_count = max((index + 1 for index, name in enumerate(order) if STAGES[name].trains), default=0)
        with self.workspace.locked():
            for index, name in enumerate(order):
                if index == shared_count:
                    processes.leave()
                if index < shared_count or processes.is_main():
                    self._run_stage(STAGES[name])

    def _run_stage(self, stage: Stage) -> None:
        """Runs one stage unless it is done. The main process decides for all."""
        if processes.from_main(lambda: self.shares(stage.name)):
            return
        key = processes.from_main(lambda: self.stage_key(stage.name))
        if processes.from_main(lambda: self.workspace.is_done(stage.folder, key)):
            console.print(f"{stage.name:<9} unchanged")
            return
        console.print(f"{stage.name:<9} ...")
        with progress() as on_step:
            build = partial(self._build_together, stage, on_step)
            if not stage.trains:
                alone = partial(self._build_alone, stage, on_step)
                processes.from_main(lambda: self.workspace.run(stage.folder, key, alone))
            elif processes.is_main():
                self.workspace.run(stage.folder, key, build)
            else:
                build()
            processes.wait()  # until the result is in its folder
        seconds = self.seconds(stage.name)
        console.print(f"{stage.name:<9} {float('nan') if seconds is None else seconds:.0f} s")

    def _build_alone(self, stage: Stage, on_step: OnStep, place: StageFolder) -> None:
        """Builds a stage in the main process."""
        stage.build(self.results, place, on_step)

    def _build_together(self, stage: Stage, on_step: OnStep, place: StageFolder | None = None) -> None:
        """Builds a stage in every process, in the place that the main process, which alone has one, hands out."""
        common = processes.from_main(lambda: place)
        assert common is not None
        if not all(processes.gather(common.scratch.is_dir())):
            raise UserError(
                "is not there for every process; give --out on a file system that all hosts share", file=common.scratch
            )
        stage.build(self.results, common, on_step)


def open_run(
    target: str | Path,
    settings: Sequence[str] = (),
    out: Path | None = None,
    dev: str | None = None,
    task: str | None = None,
) -> Run:
    """Returns the run of a recipe file, of a built-in recipe, or of a data file, for which a recipe is proposed.

    Args:
        target: the file, or the name of a built-in recipe.
        settings: `key=value`, which override the recipe.
        out: the folder of the results; None for runs/NAME.
        dev: the examples to measure on, instead of the recipe's.
        task: what a data file is for; None to tell from its content.

    Raises:
        UserError: there is no such target, or something is wrong with it.
    """
    recipe, folder = recipe_of(target, settings, out, dev, task)
    return Run(recipe, folder)
