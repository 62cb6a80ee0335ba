"""The floors that a bundle's programs must reach, from the catalogue of schemes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pipeline.bundle.manifest import MANIFEST_FILE, Manifest, Program
from pipeline.schemes import CoreMLFloors, CoreMLWeights, UnknownSchemeError, coreml_weights, linear_layers
from pipeline.support.errors import UserError

Part = TypeVar("Part")


def snr_floor_db(program: Program) -> float:
    """Returns the floor of an ExecuTorch program's logits, in decibels. Raises UserError for an unknown scheme."""
    return known(linear_layers, program.precision, program.file, "precision").snr_floor_db


def span_agreement_floor(manifest: Manifest, floor: float) -> float:
    """Returns the least share of questions with the quantized model's answer: the scheme's, or `floor` if it has none.

    Raises:
        UserError: the manifest's scheme is unknown.
    """
    return known(linear_layers, manifest.scheme, MANIFEST_FILE, "scheme").span_agreement_floor or floor


def stored_weights(program: Program) -> CoreMLWeights:
    """Returns how a Core ML program stores its weights. Raises UserError for an unknown scheme."""
    return known(coreml_weights, program.precision, program.file, "precision")


def coreml_floors(program: Program) -> CoreMLFloors:
    """Returns the floors of a Core ML program. Raises UserError for an unknown scheme."""
    return stored_weights(program).floors


def known(lookup: Callable[[str], Part], scheme: str, file: str, field: str) -> Part:
    """Looks a bundle's scheme up in the catalogue; a bundle of a newer version may have one that this version lacks."""
    try:
        return lookup(scheme)
    except UnknownSchemeError as error:
        raise UserError(
            f"{scheme!r} is not known to this version, which knows {', '.join(error.known)}; export the bundle again",
            file=file,
            field=field,
        ) from None
