"""The floors that a bundle's programs must reach. Those that depend on the scheme are in the catalogue of schemes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

from pipeline.bundle.manifest import MANIFEST_FILE, Manifest, Program
from pipeline.schemes import (
    FLOAT16_DEVICE_FLOOR_DB,
    INT8_DEVICE_FLOOR_DB,
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

# Both sides are float32 with the same weights, so only the order of sums differs. Measured on one layer with random
# weights, 64 and 768 wide, fp16 and int8, three kinds of head: at least 103 dB. With one int8 weight of a 768-wide
# layer off by half its range, 12 drawn: 64 to 86 dB.
FINGERPRINT_FLOOR_DB = 90.0
# The order of sums decides to which int8 step some activations are rounded, and what follows from them. MiniLM's six
# layers in one program: 75 dB with the layout standard, 25 dB with ane.
ROUNDED_FINGERPRINT_FLOOR_DB = 10.0
# Constants of the uncertainty, such as the logarithm of the number of classes, are float16, which is exact to 0.0005.
FINGERPRINT_UNCERTAINTY_FLOOR = 0.998
# A floor is taken as it is where it permits so many misses; see `shown_share_floor`.
ENOUGH_MISSES = 4
# Core ML itself against the evaluator, on any processor.
DEVICE_UNCERTAINTY_FLOOR = 0.99


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


def shown_share_floor(floor: float, examples: int) -> float:
    """Returns the floor of a share that was measured on some examples.

    Near ties go one way or the other, and one of 100 examples is already a share of 0.01. Where the floor permits only
    a few misses, a share fails if the examples show that it is below: if at the floor's rate so many misses would
    come less than once in 100.
    """
    from scipy.stats import binom

    if examples * (1.0 - floor) >= ENOUGH_MISSES:
        return floor
    misses = int(binom.ppf(0.99, examples, 1.0 - floor))
    return min(floor, (examples - misses) / examples)


def shown_mean_floor(floor: float, examples: int) -> float:
    """Returns the floor of 1 minus a mean absolute difference that was measured on some examples.

    Absolute values of normal noise scatter by 0.76 of their mean. The mean of a few may exceed the permitted one by two
    of its standard deviations.
    """
    return 1.0 - (1.0 - floor) * (1.0 + 2.0 * 0.76 / math.sqrt(examples))


def stored_weights(program: Program) -> CoreMLWeights:
    """Returns how a Core ML program stores its weights. Raises UserError for a scheme this version does not know."""
    return look_up(coreml_weights, program.precision, program.file, "precision")


def has_int8_inputs(program: Program) -> bool:
    """Returns whether a Core ML program has matrices with int8 inputs: those of the layers, so `embed` has none."""
    return program.name != "embed" and stored_weights(program).int8_inputs


def device_floor_db(program: Program) -> float:
    """Returns the floor of Core ML's own outputs against the evaluator's, in decibels."""
    return INT8_DEVICE_FLOOR_DB if has_int8_inputs(program) else FLOAT16_DEVICE_FLOOR_DB


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
        return [look_up(linear_layers, scheme, MANIFEST_FILE, "matrix_schemes") for scheme in mix]
    return [look_up(linear_layers, manifest.scheme, MANIFEST_FILE, "scheme")]


def counterpart_floors(scheme: str, field: str) -> CoreMLFloors:
    """Returns the Core ML floors for weights with as many bits as a scheme has in ExecuTorch."""
    return look_up(lambda name: coreml_weights(coreml_counterpart(name)).floors, scheme, MANIFEST_FILE, field)


def lowest(floors: Iterable[CoreMLFloors]) -> CoreMLFloors:
    """Returns the lowest of every floor."""
    candidates = list(floors)
    precisions = [
        precision
        for precision in candidates[0].module_db
        if all(precision in candidate.module_db for candidate in candidates)
    ]
    return CoreMLFloors(
        logits_db=min(candidate.logits_db for candidate in candidates),
        same_answer=min(candidate.same_answer for candidate in candidates),
        uncertainty=min(candidate.uncertainty for candidate in candidates),
        module_db={
            precision: min(candidate.module_db[precision] for candidate in candidates) for precision in precisions
        },
        module_uncertainty=min(candidate.module_uncertainty for candidate in candidates),
    )


def look_up(lookup: Callable[[str], Part], scheme: str, file: str, field: str) -> Part:
    """Looks a bundle's scheme up in the catalogue; a bundle of a newer version may have one that this version lacks."""
    try:
        return lookup(scheme)
    except UnknownSchemeError as error:
        raise UserError(
            f"{scheme!r} is not known to this version, which knows {', '.join(error.known)}; export the bundle again",
            file=file,
            field=field,
        ) from None
