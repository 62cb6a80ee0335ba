"""All stages of a run, in the order in which they run, and which of them lead to a given one."""

from __future__ import annotations

from pipeline.recipe import Recipe
from pipeline.run.stage import Stage
from pipeline.run.stages import bench, distill, exits, export, finetune, prepare, pretrain, quantize, report, verify
from pipeline.support.errors import UserError

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        prepare.STAGE,
        finetune.STAGE,
        pretrain.STAGE,
        distill.STAGE,
        exits.STAGE,
        quantize.STAGE,
        export.STAGE,
        verify.STAGE,
        bench.STAGE,
        report.STAGE,
    )
}


def stages_up_to(last: str, recipe: Recipe) -> list[str]:
    """Returns a stage and all stages that it needs, in the order to run them.

    Raises:
        UserError: the recipe does not have the stage.
    """
    if not STAGES[last].wanted(recipe):
        raise UserError(
            "the recipe names none, so there is nothing to pre-train on; set it to a text file, a folder or a hub set",
            field="pretrain.corpus",
        )
    needed: set[str] = set()

    def visit(name: str) -> None:
        needed.add(name)
        for before in STAGES[name].after:
            if STAGES[before].wanted(recipe):
                visit(before)

    visit(last)
    return [name for name in STAGES if name in needed]
