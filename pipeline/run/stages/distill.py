"""The stage distill: trains the student on the teacher's answers."""

from __future__ import annotations

from pipeline.run.digests import unlabelled_digest
from pipeline.run.examples import training_items
from pipeline.run.results import LOSS_CURVE_FILE, Results
from pipeline.run.stage import Stage
from pipeline.support import processes
from pipeline.support.progress import OnStep
from pipeline.support.workspace import StageFolder


def distill(results: Results, place: StageFolder, on_step: OnStep) -> None:
    """Writes the student: its encoder and its last exit head, both trained, and the other heads untrained."""
    import torch

    from pipeline.distill.student import initialise_student
    from pipeline.distill.task import distill as train_student
    from pipeline.model.checkpoint import load_encoder, save_model

    recipe = results.recipe
    teacher = results.model("finetune")
    torch.manual_seed(recipe.seed + 1)
    student = initialise_student(
        teacher,
        recipe.student.layers,
        recipe.student.exit_layers,
        recipe.head,
        initialise=recipe.student.initialise,
        encoder=load_encoder(results.path("pretrain")) if results.has("pretrain") else None,
    )
    items = training_items(results.lessons(), results.tokenizer(), results.labels(), recipe)
    curve = place.out / LOSS_CURVE_FILE
    train_student(student, teacher, items, recipe, place.scratch / "checkpoint.pt", on_step, curve=curve)
    if processes.is_main():
        save_model(student, place.out)


STAGE = Stage(
    "distill",
    "student",
    after=("finetune", "pretrain"),
    sections=("student", "distill"),
    build=distill,
    trains=True,
    inputs=unlabelled_digest,
)
