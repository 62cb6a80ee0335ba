"""Verification compares a bundle with whatever it is given, and one failed check fails the bundle."""

from __future__ import annotations

import json
import shutil

import pytest

from pipeline.bundle.opening import Bundle
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError
from pipeline.verify.checks import MacReport
from pipeline.verify.verify import AnsweredExamples, Verification, read_conformance, verify


@pytest.fixture(scope="module")
def answered(tiny_classifier) -> AnsweredExamples:
    """Examples with the labels that the bundle gives at full depth."""
    runner = Runner(Bundle.open(tiny_classifier.path))
    examples = tiny_classifier.examples[:6]
    labels = [runner.classify(example.text, example.text_pair, "0").label_index for example in examples]
    return AnsweredExamples(tuple(examples), tuple(labels))


def test_a_bundle_alone_is_checked_against_its_conformance_vectors(tiny_classifier):
    verification = verify(tiny_classifier.path)
    assert verification.passed and verification.failure() is None
    assert {"logits_snr_db", "within_tolerance", "outcome_agreement"} <= {check.metric for check in verification.checks}
    assert not any("torch" in check.metric for check in verification.checks)
    assert not verification.mac.ran and "no programs for Core ML" in verification.mac.reason
    assert set(verification.to_json()) == {"passed", "checks", "warnings", "mac"}


def test_answers_of_the_quantized_model_are_compared_where_they_are_given(tiny_classifier, answered):
    alone, compared = verify(tiny_classifier.path), verify(tiny_classifier.path, examples=answered)
    assert [check.metric for check in compared.checks] == [
        *(check.metric for check in alone.checks),
        "same_answer_as_quantized_torch",
    ]
    assert compared.passed


def test_one_failed_check_fails_the_bundle_and_names_the_file_with_all_checks(tiny_classifier, answered, tmp_path):
    wrong = AnsweredExamples(answered.examples, tuple((label + 1) % 3 for label in answered.answers))
    verification = verify(tiny_classifier.path, examples=wrong)
    assert not verification.passed and not verification.to_json()["passed"]
    count = len(verification.checks)
    assert verification.failure().startswith(f"1 of {count} checks failed, first executorch all, 6 dev examples: ")
    with pytest.raises(UserError, match=r"all\.json: 1 of .* does not compute what its model does"):
        verification.require(tmp_path / "all.json")


def test_no_checks_are_no_proof():
    nothing = Verification(checks=[], warnings=[], mac=MacReport(ran=False, reason="no Mac"))
    assert not nothing.passed and nothing.to_json()["passed"] is False


def test_conformance_vectors_that_cannot_be_read_are_refused(tiny_classifier, tmp_path):
    with pytest.raises(UserError, match="conformance.json: is missing"):
        read_conformance(tmp_path)
    bundle = shutil.copytree(tiny_classifier.path, tmp_path / "bundle")
    vectors = json.loads((bundle / "conformance.json").read_text())
    (bundle / "conformance.json").write_text(json.dumps(vectors | {"task": "poetry"}))
    with pytest.raises(UserError, match=r"conformance.json: task: 'poetry' is not known"):
        read_conformance(bundle)
