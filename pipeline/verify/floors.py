"""The floors that a bundle's programs must reach, from the catalogue of schemes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from pipeline.bundle.manifest import MANIFEST_FILE, Manifest, Program
from pipeline.schemes import (
    SCHEMES,
    WORD_TABLE_MATRIX,
    CoreMLFloors,
    CoreMLWeights,
    LinearLayers,
    UnknownSchemeError,
    coreml_counterpart,
    coreml_weights,
    linear_layers,
)
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

Part = TypeVar("Part")


def snr_floor_db(manifest: Manifest) -> float:
    """Returns the floor of the ExecuTorch programs' logits, in decibels; a mix has the lowest of its schemes' floors.

    Raises:
        UserError: the bundle has a scheme that this version does not know.
    """
    return min(layers.snr_floor_db for layers in linear_parts(manifest))


def agreement_floor(manifest: Manifest) -> float:
    """Returns the least share of examples with the quantized model's answer, by the bundle's task and schemes.

    Raises:
        UserError: the bundle has a scheme that this version does not know.
    """
    task = get_task(manifest.task)
    rounds_to_int8 = any(layers.activation_bits == 8 for layers in linear_parts(manifest))
    return task.agreement_floor_rounded if rounds_to_int8 else task.agreement_floor


def stored_weights(program: Program) -> CoreMLWeights:
    """Returns how a Core ML program stores its weights. Raises UserError for a scheme this version does not know."""
    return known(coreml_weights, program.precision, program.file, "precision")


def module_floors(program: Program, manifest: Manifest) -> CoreMLFloors:
    """Returns the floors of a Core ML program against float32; a mix has the lowest of its schemes'.

    Raises:
        UserError: the bundle has a scheme that this version does not know.
    """
    weights, mix = stored_weights(program), manifest.matrix_schemes
    if not (SCHEMES[program.precision].by_matrix and mix):
        return weights.floors
    return lowest(counterpart_floors(scheme, "matrix_schemes") for scheme in set(mix.values()))


def vector_floors(program: Program, manifest: Manifest) -> CoreMLFloors:
    """Returns the floors of a Core ML program against the conformance vectors.

    The vectors come from the model quantized for ExecuTorch, whose weights may have fewer bits than the program's.
    Their noise counts as much as the program's, so the lower floor holds.

    Raises:
        UserError: the bundle has a scheme that this version does not know.
    """
    if mix := set(manifest.matrix_schemes.values()):
        vectors = [counterpart_floors(scheme, "matrix_schemes") for scheme in mix]
    else:
        vectors = [
            counterpart_floors(manifest.scheme, "scheme"),
            counterpart_floors(manifest.embeddings_scheme, "embeddings_scheme"),
        ]
    return lowest([module_floors(program, manifest), *vectors])


def linear_parts(manifest: Manifest) -> list[LinearLayers]:
    """Returns the schemes of the bundle's linear layers: one, or those of a mix."""
    mix = {scheme for matrix, scheme in manifest.matrix_schemes.items() if matrix != WORD_TABLE_MATRIX}
    if mix:
        return [known(linear_layers, scheme, MANIFEST_FILE, "matrix_schemes") for scheme in mix]
    return [known(linear_layers, manifest.scheme, MANIFEST_FILE, "scheme")]


def counterpart_floors(scheme: str, field: str) -> CoreMLFloors:
    """Returns the Core ML floors for weights with as many bits as a scheme has in ExecuTorch."""
    return known(lambda name: coreml_weights(coreml_counterpart(name)).floors, scheme, MANIFEST_FILE, field)


def lowest(floors: Iterable[CoreMLFloors]) -> CoreMLFloors:
    """Returns the lowest of every floor."""
    floors = list(floors)
    precisions = [precision for precision in floors[0].module_db if all(precision in each.module_db for each in floors)]
    return CoreMLFloors(
        logits_db=min(each.logits_db for each in floors),
        same_answer=min(each.same_answer for each in floors),
        uncertainty=min(each.uncertainty for each in floors),
        module_db={precision: min(each.module_db[precision] for each in floors) for precision in precisions},
        module_uncertainty=min(each.module_uncertainty for each in floors),
    )


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
