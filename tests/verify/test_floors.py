"""A program's floors follow from the schemes in its bundle."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.bundle.manifest import Manifest, ModelShape, Program, Tokenizer
from pipeline.schemes import FOUR_BIT_FLOORS, FP16_FLOORS, INT8_FLOORS, SCHEMES
from pipeline.support.errors import UserError
from pipeline.verify.floors import (
    agreement_floor,
    module_floors,
    shown_mean_floor,
    shown_share_floor,
    snr_floor_db,
    stored_weights,
    vector_floors,
)


def manifest_of(scheme: str, embeddings: str = "int8", **matrix_schemes: str) -> Manifest:
    mix = {name.replace("__", "."): matrix_scheme for name, matrix_scheme in matrix_schemes.items()}
    return Manifest(
        name="tiny", task="qa", max_length=32, scheme=scheme, embeddings_scheme=embeddings, matrix_schemes=mix,
        model=ModelShape(
            layers=1, hidden_size=32, heads=2, intermediate_size=64, vocab_size=90, parameters=0,
            exit_layers=[1], head="linear",
        ),
        tokenizer=Tokenizer(vocab_size=90, lowercase=True, pad_id=0, unk_id=1, cls_id=2, sep_id=3),
        programs=[], speeds={}, files=[], provenance={},
    )  # fmt: skip


def coreml_program(precision: str) -> Program:
    return Program(
        name="segment_0", backend="coreml", file="coreml/segment_0.mlpackage", method="length_32", precision=precision,
        inputs=[], outputs=[], lengths=[32],
    )  # fmt: skip


FLOAT_MIX = manifest_of("mixed", layers__0__qkv="fp32", embeddings__word="int8")
INT8_MIX = manifest_of("mixed", layers__0__qkv="int8", layers__0__ffn_in="fp32", embeddings__word="int8")
INT4_TABLE_MIX = manifest_of("mixed", "int4", layers__0__qkv="int8", embeddings__word="int4")


def test_a_mix_without_int8_inputs_has_the_floors_of_float_inputs():
    assert (snr_floor_db(FLOAT_MIX), agreement_floor(FLOAT_MIX)) == (60.0, 0.99)
    for mix in (INT8_MIX, INT4_TABLE_MIX):
        assert (snr_floor_db(mix), agreement_floor(mix)) == (25.0, 0.97)


def test_a_scheme_with_inputs_of_16_bits_agrees_as_often_as_floats():
    assert agreement_floor(manifest_of("int8-a16")) == 0.99
    assert agreement_floor(manifest_of("int8")) == 0.97


def test_a_mix_in_core_ml_has_the_floors_of_its_weakest_scheme():
    program = coreml_program("mixed")
    assert module_floors(program, INT4_TABLE_MIX) == FOUR_BIT_FLOORS
    assert module_floors(program, INT8_MIX) == INT8_FLOORS
    only_float = manifest_of("mixed", "fp16", layers__0__qkv="fp32", embeddings__word="fp16")
    assert module_floors(program, only_float) == FP16_FLOORS


def test_vectors_in_four_bits_lower_the_floors_against_them_alone():
    """The noise of four bits in the vectors is no fault of a package in eight."""
    program = coreml_program("int8")
    for manifest in (manifest_of("int4"), manifest_of("int8", "int4"), INT4_TABLE_MIX):
        floors = vector_floors(program, manifest)
        assert (floors.logits_db, floors.same_answer) == (FOUR_BIT_FLOORS.logits_db, FOUR_BIT_FLOORS.same_answer)
        assert module_floors(program, manifest) == INT8_FLOORS
    assert vector_floors(program, manifest_of("int8-a16")).logits_db == INT8_FLOORS.logits_db


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES.values() if scheme.coreml and not scheme.by_matrix])
def test_a_program_of_one_scheme_has_the_floors_of_its_entry(scheme):
    assert module_floors(coreml_program(scheme.name), manifest_of("int8")) == scheme.coreml.floors


def test_a_scheme_that_this_version_does_not_know_is_named_with_its_place():
    with pytest.raises(
        UserError, match=r"segment_0.mlpackage: precision: 'int3' is not known .* knows fp32, fp16, int8"
    ):
        stored_weights(coreml_program("int3"))
    with pytest.raises(UserError, match=r"manifest.json: matrix_schemes: 'int3' is not known"):
        snr_floor_db(manifest_of("mixed", layers__0__qkv="int3"))


def test_few_examples_may_miss_what_chance_makes_them_miss():
    assert shown_share_floor(0.995, 2000) == 0.995 and shown_share_floor(0.97, 500) == 0.97
    assert shown_share_floor(0.995, 180) == (180 - 4) / 180
    rng = np.random.default_rng(0)
    for floor, examples in ((0.995, 60), (0.995, 180), (0.995, 700), (0.97, 76), (0.97, 120)):
        shares = 1 - rng.binomial(examples, 1 - floor, 20_000) / examples
        assert (shares < shown_share_floor(floor, examples)).mean() < 0.01  # a model at the floor's rate
        broken = 1 - rng.binomial(examples, 0.2, 20_000) / examples
        assert (broken >= shown_share_floor(floor, examples)).mean() < 0.01  # one that misses a fifth


def test_the_mean_of_a_few_differences_may_scatter():
    rng = np.random.default_rng(0)
    for examples in (2, 4, 16, 200):
        means = np.abs(rng.normal(0, 0.05 / np.sqrt(2 / np.pi), (20_000, examples))).mean(axis=1)
        assert (1 - means < shown_mean_floor(0.95, examples)).mean() < 0.07
    assert shown_mean_floor(0.95, 10_000) == pytest.approx(0.95, abs=0.001)
