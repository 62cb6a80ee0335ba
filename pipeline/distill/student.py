"""The student's first weights: some of the teacher's layers (DistilBERT, section 3: one out of two)."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.model.checkpoint import fold_token_types
from pipeline.model.exit_model import ExitModel


def default_layers(teacher_layers: int) -> list[int]:
    """Every other layer of a deep teacher; all of one that is already as small as a DistilBERT."""
    return list(range(teacher_layers)) if teacher_layers <= 6 else list(range(0, teacher_layers, 2))


def initialise_student(
    teacher: ExitModel, layers: Sequence[int] | None, exit_layers: Sequence[int] | None, head: str
) -> ExitModel:
    """A student of the given teacher layers (from 0), without token types and pooler, its last head the teacher's where the kind is the same.

    Raises:
        UserError: for layers that the teacher does not have, or exits that do not end with the student's last layer.
    """
    chosen = default_layers(teacher.config.layers) if layers is None else list(layers)
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= teacher.config.layers:
        raise UserError(
            f"{chosen} must ascend within 0 to {teacher.config.layers - 1}, the teacher's layers", field="student.layers"
        )
    exits = list(range(1, len(chosen) + 1)) if exit_layers is None else list(exit_layers)
    if exits != sorted(set(exits)) or not exits or exits[0] < 1 or exits[-1] != len(chosen):
        raise UserError(f"{exits} must ascend and end with {len(chosen)}, the student's last layer", field="student.exit_layers")
    config, source = fold_token_types(teacher.config, teacher.encoder.state_dict())
    student = ExitModel(teacher.task, config.with_(layers=len(chosen)), teacher.labels, head, exits)
    state = {name: tensor for name, tensor in source.items() if not name.startswith("layers.")}
    for target, layer in enumerate(chosen):
        prefix = f"layers.{layer}."
        state |= {f"layers.{target}.{name[len(prefix):]}": t for name, t in source.items() if name.startswith(prefix)}
    student.encoder.load_state_dict(state)
    if head == teacher.head_kind:
        student.heads[-1].load_state_dict(teacher.heads[-1].state_dict())
    return student
