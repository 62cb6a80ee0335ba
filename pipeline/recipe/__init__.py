"""The recipe: every choice of a run, typed and checked once. Stages read it; none of them reads the command line."""

from pipeline.recipe.files import built_in_recipes, check_recipe, find_recipe, is_recipe, load_recipe
from pipeline.recipe.keys import known_keys
from pipeline.recipe.recipe import MIN_ROUNDING_TEXTS, Recipe
from pipeline.recipe.sections import (
    MIN_CALIBRATION_EXAMPLES,
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
from pipeline.recipe.settings import apply_settings, parse_setting, parse_value, set_value

__all__ = [
    "MIN_CALIBRATION_EXAMPLES",
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
    "is_recipe",
    "known_keys",
    "load_recipe",
    "parse_setting",
    "parse_value",
    "set_value",
]
