"""Initialises a student from some of the teacher's layers (DistilBERT, section 3: every second one)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipeline.model.encoder import Encoder, EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.pretrained import fold_token_types
from pipeline.support.errors import UserError


def default_layers(teacher_layers: int) -> list[int]:
    """Returns every other layer (from 0) of a deep teacher, but all of one with at most 6, a DistilBERT's number."""
    return list(range(teacher_layers)) if teacher_layers <= 6 else list(range(0, teacher_layers, 2))


def chosen_layers(teacher_layers: int, layers: Sequence[int] | None) -> list[int]:
    """Returns the teacher's layers (from 0) that the student starts from. None means `default_layers`.

    Raises:
        UserError: the layers do not ascend, or the teacher does not have them.
    """
    chosen = default_layers(teacher_layers) if layers is None else list(layers)
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= teacher_layers:
        raise UserError(
            f"{chosen} must ascend within 0 to {teacher_layers - 1}, the teacher's layers", field="student.layers"
        )
    return chosen


def chosen_exits(student_layers: int, exit_layers: Sequence[int] | None) -> list[int]:
    """Returns the student's layers (from 1) that an exit follows. None means every layer.

    Raises:
        UserError: the layers do not ascend, or do not end with the student's last one.
    """
    exits = list(range(1, student_layers + 1)) if exit_layers is None else list(exit_layers)
    if exits != sorted(set(exits)) or not exits or exits[0] < 1 or exits[-1] != student_layers:
        raise UserError(
            f"{exits} must ascend and end with {student_layers}, the student's last layer", field="student.exit_layers"
        )
    return exits


def student_encoder(
    config: EncoderConfig, encoder: dict[str, Tensor], layers: Sequence[int] | None
) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Takes some layers out of an encoder and folds its token types into the positions.

    Args:
        config, encoder: the teacher's sizes and state dict.
        layers: from 0; None means `default_layers`.

    Returns:
        sizes and state dict of the smaller encoder.

    Raises:
        UserError: the teacher does not have these layers.
    """
    chosen = chosen_layers(config.layers, layers)
    config, source = fold_token_types(config, encoder)
    state = {name: tensor for name, tensor in source.items() if not name.startswith("layers.")}
    for target, layer in enumerate(chosen):
        prefix = f"layers.{layer}."
        state |= {f"layers.{target}.{name[len(prefix) :]}": t for name, t in source.items() if name.startswith(prefix)}
    return config.with_(layers=len(chosen)), state


def check_same_shape(student: EncoderConfig, teacher: EncoderConfig, field: str) -> None:
    """Checks that a student has the vocabulary, width and attention heads of the teacher it is to learn from.

    Args:
        field: the recipe's field that the error names.

    Raises:
        UserError: it does not.
    """
    for quantity, ours, theirs in (
        ("vocabulary", student.vocab_size, teacher.vocab_size),
        ("width", student.hidden_size, teacher.hidden_size),
        ("number of attention heads", student.heads, teacher.heads),
    ):
        if ours != theirs:
            raise UserError(
                f"the student's {quantity} is {ours}, the teacher's {theirs}; take a teacher of the student's family",
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
    """Builds a student from some of the teacher's layers, without token types and pooler.

    Its last head is the teacher's if it is of the same kind.

    Args:
        layers: the teacher's layers (from 0); None means `default_layers`.
        exit_layers: the student's layers (from 1) that a head follows; None means every layer.
        head: the kind of head.
        initialise: "teacher", or "random" for a student of the same sizes with none of the teacher's weights.
        encoder: a pre-trained student encoder to start from. `layers` and `initialise` were applied when it was
            pre-trained.

    Raises:
        UserError: the teacher does not have these layers, the exits do not end with the student's last layer, or the
            pre-trained encoder has another vocabulary, width or number of attention heads than the teacher.
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
