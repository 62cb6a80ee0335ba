"""The catalogue of schemes is complete, and everything that reads it agrees with it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.recipe import Recipe, load_recipe
from pipeline.schemes import (
    APPLE_SYSTEMS,
    COREML_SCHEMES,
    DEFAULT_SCHEME,
    DELEGATE_SCHEME,
    LINEAR_SCHEMES,
    MIX_CHOICES,
    SCHEMES,
    UNQUANTIZED,
    WORD_TABLE_SCHEMES,
    Scheme,
    coreml_counterpart,
    coreml_weights,
    linear_layers,
    word_table,
)
from pipeline.support.errors import UserError

ROOT = Path(__file__).parent.parent
RECIPE = 'name = "test"\ntask = "classification"\n'


def single_schemes(names: tuple[str, ...]) -> set[str]:
    """The names that one arithmetic stands for; a mix has those of its matrices."""
    return {name for name in names if not SCHEMES[name].by_matrix}


def test_every_entry_has_arithmetic_and_every_arithmetic_an_entry():
    from quantize.coreml_schemes import COREML_ARITHMETIC
    from quantize.schemes import LINEAR_ARITHMETIC, WORD_TABLE_ARITHMETIC

    assert set(LINEAR_ARITHMETIC) == single_schemes(LINEAR_SCHEMES)
    assert set(WORD_TABLE_ARITHMETIC) == single_schemes(WORD_TABLE_SCHEMES)
    assert set(COREML_ARITHMETIC) == {name for name, scheme in SCHEMES.items() if scheme.coreml}
    for name, arithmetic in LINEAR_ARITHMETIC.items():
        assert (arithmetic.from_steps is not None) == SCHEMES[name].rounded_by_texts
    for name, make_table in WORD_TABLE_ARITHMETIC.items():
        assert (make_table is not None) == word_table(name).float16_positions


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_every_entry_has_floors_on_each_of_its_targets(scheme: Scheme):
    assert SCHEMES[scheme.name] is scheme and scheme.summary
    assert scheme.linear or scheme.word_table or scheme.coreml
    if scheme.linear:
        assert scheme.linear.snr_floor_db > 0
    if scheme.coreml:
        floors = scheme.coreml.floors
        assert set(floors.module_db) <= {"float32", "float16"} and min(floors.module_db.values()) > 0
        assert 0.5 < floors.module_uncertainty < 1 and 0.5 < floors.same_answer <= 1 and 0.5 < floors.uncertainty < 1


def test_what_the_catalogue_names_is_in_it():
    for name in (UNQUANTIZED, DEFAULT_SCHEME, *MIX_CHOICES):
        linear_layers(name), word_table(name)
        assert not SCHEMES[name].by_matrix
    assert coreml_weights(DEFAULT_SCHEME).runs_on(APPLE_SYSTEMS[0]) and SCHEMES[DEFAULT_SCHEME].group == 1
    assert coreml_weights(DELEGATE_SCHEME).runs_on(APPLE_SYSTEMS[0])
    for name in COREML_SCHEMES:
        assert coreml_weights(coreml_weights(name).alternative).runs_on(APPLE_SYSTEMS[0])
    for name in single_schemes(LINEAR_SCHEMES + WORD_TABLE_SCHEMES):
        counterpart = SCHEMES[coreml_counterpart(name)]
        assert counterpart.coreml and not counterpart.by_matrix
        assert counterpart.weight_bits == min(SCHEMES[name].weight_bits, 16)


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("quantize.scheme", LINEAR_SCHEMES),
        ("quantize.embeddings", WORD_TABLE_SCHEMES),
        ("export.coreml_precision", COREML_SCHEMES),
    ],
)
def test_a_recipe_offers_what_the_catalogue_has(tmp_path, key, names):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    for name in names:
        settings = ["quantize.scheme=mixed", "quantize.budget_mb=9"] if SCHEMES[name].by_matrix else []
        recipe = load_recipe(path, [*settings, f"{key}={name}"])
        section, field = key.split(".")
        assert getattr(getattr(recipe, section), field) == name
    with pytest.raises(UserError) as refused:
        load_recipe(path, [f"{key}=int3"])
    *others, last = (f"'{name}'" for name in names)
    assert str(refused.value) == f"{path}: {key}: Input should be {', '.join(others)} or {last} (--set {key}=int8)"


def test_defaults_of_a_recipe_are_in_the_catalogue():
    recipe = Recipe.model_validate({"name": "test", "task": "qa"})
    assert recipe.quantize.scheme in LINEAR_SCHEMES and recipe.quantize.embeddings in WORD_TABLE_SCHEMES
    assert recipe.export.coreml_precision in COREML_SCHEMES


def test_the_documentation_names_no_other_scheme():
    """Whatever looks like a scheme between backquotes is one."""
    pages = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    named = {name for page in pages for name in re.findall(r"`((?:fp|int|palette)\d[a-z0-9-]*)`", page.read_text())}
    assert {"int8-a16", "int4", "palette6"} <= named - {"int32", "int64"} <= set(SCHEMES)  # but for types of tensors


def test_the_catalogue_needs_no_library():
    code = "import sys, pipeline.schemes; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
