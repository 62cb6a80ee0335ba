"""What a recipe's quantization schemes ask of its stages.

Nothing here imports torch at the top, since the keys of stages need it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.recipe import Recipe
from pipeline.schemes import SCHEMES, coreml_weights


def is_mixed(recipe: Recipe) -> bool:
    """Returns whether each matrix gets a scheme of its own."""
    return SCHEMES[recipe.quantize.scheme].by_matrix


def has_int4(recipe: Recipe) -> bool:
    """Returns whether the programs of any target may have int4 matrices."""
    return SCHEMES[recipe.quantize.scheme].rounded_by_texts or (
        recipe.export.coreml and SCHEMES[recipe.export.coreml_precision].rounded_by_texts
    )


def rounds_by_texts(recipe: Recipe) -> bool:
    """Returns whether int4 matrices are rounded so that their errors cancel on the recipe's rounding texts."""
    return has_int4(recipe) and recipe.quantize.rounding_texts > 0


def coreml_has_int4(recipe: Recipe) -> bool:
    """Returns whether the Core ML programs may have int4 matrices."""
    return SCHEMES[recipe.export.coreml_precision].rounded_by_texts


def coreml_is_mixed(recipe: Recipe) -> bool:
    """Returns whether each matrix of the Core ML programs has the scheme that the mix gave it."""
    return SCHEMES[recipe.export.coreml_precision].by_matrix


def coreml_has_int8_inputs(recipe: Recipe) -> bool:
    """Returns whether there are Core ML programs whose matrices have int8 inputs."""
    return recipe.export.coreml and coreml_weights(recipe.export.coreml_precision).int8_inputs


def include_int4(schemes: Sequence[str]) -> bool:
    """Returns whether int4 is among the schemes."""
    return any(name in SCHEMES and SCHEMES[name].rounded_by_texts for name in schemes)
