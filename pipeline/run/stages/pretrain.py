"""The stage pretrain: distills the student's encoder on plain text, before any task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.corpus import Blocks, open_corpus, write_corpus
from pipeline.recipe import Recipe
from pipeline.run.digests import pretraining_digests
from pipeline.run.results import LOSS_CURVE_FILE, METRICS_FILE, VOCAB_FILE, Results
from pipeline.run.stage import Stage
from pipeline.support import processes
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, console
from pipeline.support.workspace import StageFolder, write_text

if TYPE_CHECKING:
    from pipeline.model.mlm import MaskedLM
    from pipeline.model.pretrained import Pretrained


def pretrain(results: Results, place: StageFolder, on_step: OnStep) -> None:
    """Writes the student's encoder, and how well it finds masked words before and after."""
    import torch

    from pipeline.distill.pretrain import measure, student_of, teacher_of
    from pipeline.distill.pretrain import pretrain as train_student
    from pipeline.model.checkpoint import save_encoder
    from pipeline.model.pretrained import load_pretrained

    recipe, options = results.recipe, results.recipe.pretrain
    assert options.corpus is not None  # else the recipe does not have this stage
    source = options.corpus
    pretrained = load_pretrained(options.teacher or recipe.teacher.weights, recipe.task)
    tokenizer = pretrained.tokenizer
    if options.teacher:
        check_task_teacher(recipe, pretrained)
    torch.manual_seed(recipe.seed + 3)
    teacher = teacher_of(pretrained)
    corpus = place.scratch / "corpus.ids"
    processes.from_main(lambda: write_corpus(source, tokenizer, corpus, options, on_step))
    blocks = open_corpus(corpus, tokenizer, options)
    blocks, held_out = blocks.split(min(options.held_out, max(1, len(blocks) // 10)), recipe.seed)
    if pretrained.mlm_head is None:
        fit_teacher_head(teacher, pretrained.source, blocks, recipe, place.scratch, on_step)
    torch.manual_seed(recipe.seed + 4)
    student = student_of(teacher, recipe)
    metrics = {
        "blocks": len(blocks),
        "held_out": len(held_out),
        "teacher": measure(teacher, teacher, held_out, recipe, on_step).to_json(),
        "before": measure(student, teacher, held_out, recipe, on_step).to_json(),
    }
    curve = place.out / LOSS_CURVE_FILE
    train_student(student, teacher, blocks, recipe, place.scratch / "checkpoint.pt", on_step, curve=curve)
    if not processes.is_main():
        return
    metrics["after"] = measure(student, teacher, held_out, recipe, on_step).to_json()
    save_encoder(student.encoder, place.out)
    (place.out / VOCAB_FILE).write_bytes(tokenizer.vocab)
    write_text(place.out / METRICS_FILE, json.dumps(metrics))


def check_task_teacher(recipe: Recipe, pretrained: Pretrained) -> None:
    """Checks that the teacher of the pre-training fits the teacher of the task, which the student meets hours later.

    Raises:
        UserError: their widths or vocabularies differ.
    """
    from pipeline.distill.student import check_same_shape
    from pipeline.model.pretrained import load_pretrained

    later = load_pretrained(recipe.teacher.weights, recipe.task)
    check_same_shape(pretrained.config, later.config, "pretrain.teacher")
    if not pretrained.tokenizer.tokenizes_as(later.tokenizer):
        raise UserError(
            f"its vocabulary is not that of {recipe.teacher.weights}; take a teacher with the same",
            field="pretrain.teacher",
        )


def fit_teacher_head(
    teacher: MaskedLM, source: str, blocks: Blocks, recipe: Recipe, scratch: Path, on_step: OnStep
) -> None:
    """Trains a masked-LM head for a teacher whose checkpoint has none, and puts it into the teacher.

    Args:
        teacher: its encoder stays as it is.
        source: the name of the checkpoint, for the terminal.
        scratch: keeps the finished head, so that a stage that was killed later does not train it again.
    """
    from safetensors.torch import load_file, save_file

    from pipeline.distill.pretrain import fit_head

    fitted = scratch / "teacher_head.safetensors"
    if not fitted.is_file():
        console.print(f"  {source} comes without a masked-LM head; fitting one on its frozen encoder")
        fit_head(teacher, blocks, recipe, scratch / "head_checkpoint.pt", on_step)
        if processes.is_main():
            save_file(teacher.head.state_dict(), partial := fitted.with_suffix(".partial"))
            partial.replace(fitted)
        processes.wait()
    teacher.head.load_state_dict(load_file(fitted))


def names_corpus(recipe: Recipe) -> bool:
    """Returns whether the recipe names text to pre-train on."""
    return recipe.pretrain.corpus is not None


STAGE = Stage(
    "pretrain",
    "pretrained",
    after=(),
    sections=("seed", "precision", "pretrain"),
    build=pretrain,
    wanted=names_corpus,
    trains=True,
    inputs=pretraining_digests,
)
