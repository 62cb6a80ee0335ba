"""The recipe: every choice of a run, typed and checked once. Stages read it; none of them reads the command line."""

from pipeline.recipe.files import (
    apply_settings,
    built_in_recipes,
    check_recipe,
    find_recipe,
    known_keys,
    load_recipe,
    parse_value,
    set_value,
)
from pipeline.recipe.recipe import MIN_ROUNDING_TEXTS, Recipe
from pipeline.recipe.sections import (
    QA,
    Bench,
    Data,
    Distill,
    Exits,
    Export,
    Pretrain,
    Quantize,
    Section,
    Student,
    Teacher,
    Training,
)

__all__ = [
    "MIN_ROUNDING_TEXTS",
    "QA",
    "Bench",
    "Data",
    "Distill",
    "Exits",
    "Export",
    "Pretrain",
    "Quantize",
    "Recipe",
    "Section",
    "Student",
    "Teacher",
    "Training",
    "apply_settings",
    "built_in_recipes",
    "check_recipe",
    "find_recipe",
    "known_keys",
    "load_recipe",
    "parse_value",
    "set_value",
]
