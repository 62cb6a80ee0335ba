"""The student's first weights: some of the teacher's layers (DistilBERT, section 3: one out of two)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipeline.model.encoder import Encoder, EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.pretrained import fold_token_types
from pipeline.support.errors import UserError


def default_layers(teacher_layers: int) -> list[int]:
    """Every other layer of a deep teacher; all of one that is already as small as a DistilBERT."""
    return list(range(teacher_layers)) if teacher_layers <= 6 else list(range(0, teacher_layers, 2))


def chosen_layers(teacher_layers: int, layers: Sequence[int] | None) -> list[int]:
    """The layers of the teacher that a student gets. UserError for ones that the teacher does not have."""
    chosen = default_layers(teacher_layers) if layers is None else list(layers)
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= teacher_layers:
        raise UserError(
            f"{chosen} must ascend within 0 to {teacher_layers - 1}, the teacher's layers", field="student.layers"
        )
    return chosen


def chosen_exits(student_layers: int, exit_layers: Sequence[int] | None) -> list[int]:
    """After which of its layers (from 1) a student has an exit. UserError unless they end with its last one."""
    exits = list(range(1, student_layers + 1)) if exit_layers is None else list(exit_layers)
    if exits != sorted(set(exits)) or not exits or exits[0] < 1 or exits[-1] != student_layers:
        raise UserError(
            f"{exits} must ascend and end with {student_layers}, the student's last layer", field="student.exit_layers"
        )
    return exits


def student_encoder(
    config: EncoderConfig, encoder: dict[str, Tensor], layers: Sequence[int] | None
) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """The shape and the tensors of an encoder of the given layers (from 0) of another, without token types.

    Raises:
        UserError: for layers that the teacher does not have.
    """
    chosen = chosen_layers(config.layers, layers)
    config, source = fold_token_types(config, encoder)
    state = {name: tensor for name, tensor in source.items() if not name.startswith("layers.")}
    for target, layer in enumerate(chosen):
        prefix = f"layers.{layer}."
        state |= {f"layers.{target}.{name[len(prefix) :]}": t for name, t in source.items() if name.startswith(prefix)}
    return config.with_(layers=len(chosen)), state


def check_same_shape(student: EncoderConfig, teacher: EncoderConfig, field: str) -> None:
    """UserError, about the recipe's `field`, unless a student can learn from a teacher: the same words and the same width."""
    for what, ours, theirs in (
        ("vocabulary", student.vocab_size, teacher.vocab_size),
        ("width", student.hidden_size, teacher.hidden_size),
        ("number of attention heads", student.heads, teacher.heads),
    ):
        if ours != theirs:
            raise UserError(
                f"the student's {what} is {ours}, the teacher's {theirs}; take a teacher of the student's family",
                field=field,
            )


def initialise_student(
    teacher: ExitModel,
    layers: Sequence[int] | None,
    exit_layers: Sequence[int] | None,
    head: str,
    *,
    initialise: str = "teacher",
    encoder: Encoder | None = None,
) -> ExitModel:
    """A student of the given teacher layers (from 0), without token types and pooler, its last head the teacher's where the kind is the same.

    Args:
        initialise: "random" for a student of the same shape that has nothing of the teacher's weights.
        encoder: a pre-trained encoder to start from; `layers` chose its layers then, and `initialise` how it began.

    Raises:
        UserError: for layers that the teacher does not have, exits that do not end with the student's last layer, or a pre-trained
            encoder of another vocabulary or width than the teacher's.
    """
    if encoder is None:
        config, state = student_encoder(teacher.config, teacher.encoder.state_dict(), layers)
    else:
        check_same_shape(encoder.config, teacher.config, "teacher.weights")
        config, state = encoder.config, encoder.state_dict()
    student = ExitModel(teacher.task, config, teacher.labels, head, chosen_exits(config.layers, exit_layers))
    if encoder is not None or initialise == "teacher":
        student.encoder.load_state_dict(state)
    if head == teacher.head_kind and initialise == "teacher":
        student.heads[-1].load_state_dict(teacher.heads[-1].state_dict())
    return student
