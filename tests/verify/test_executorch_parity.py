"""ExecuTorch parity passes for a bundle that matches its vectors, and fails for every way in which one does not."""

import json
import shutil

import pytest

from pipeline.bundle.conformance import Conformance
from pipeline.support.errors import UserError
from pipeline.verify.executorch_parity import check_executorch


def conformance(tiny) -> Conformance:
    return Conformance.model_validate_json((tiny.path / "conformance.json").read_bytes())


def failed(tiny, vectors, path=None):
    """Returns (program, metric) of all failed checks."""
    return {
        (check.program, check.metric)
        for check in check_executorch(path or tiny.path, tiny.manifest, vectors)
        if not check.passed
    }


def edited(vectors: Conformance, change) -> Conformance:
    raw = json.loads(vectors.model_dump_json(exclude_none=True))
    change(raw)
    return Conformance.model_validate(raw)


@pytest.fixture(params=["tiny_classifier", "tiny_regressor", "tiny_qa"])
def tiny(request):
    return request.getfixturevalue(request.param)


def test_an_exported_bundle_passes(tiny):
    steps = []
    checks = check_executorch(
        tiny.path, tiny.manifest, conformance(tiny), lambda what, done, total: steps.append((done, total))
    )
    assert all(check.passed for check in checks), checks
    programs = {check.program for check in checks}
    assert programs == {"tokenizer", "loop", *(f"segment_{index}" for index in range(tiny.manifest.segments))}
    assert all(check.backend == "executorch" for check in checks)
    assert steps[-1] == (8, 8)


def test_a_wrong_logit_fails_its_segment(tiny):
    def change(raw):
        outputs = raw["cases"][3]["windows"][0]["exits"][1]["outputs"]
        next(iter(outputs.values()))[0] += 50.0

    assert failed(tiny, edited(conformance(tiny), change)) >= {
        ("segment_1", "logits_snr_db"),
        ("segment_1", "within_tolerance"),
    }
    assert ("segment_0", "within_tolerance") not in failed(tiny, edited(conformance(tiny), change))


def test_a_wrong_uncertainty_fails_its_segment(tiny):
    vectors = conformance(tiny)

    def change(raw):
        raw["cases"][0]["windows"][0]["exits"][0]["uncertainty"] += 2 * vectors.uncertainty_tolerance

    assert failed(tiny, edited(vectors, change)) == {("segment_0", "within_tolerance")}


def test_a_wrong_exit_or_answer_fails_the_loop(tiny):
    def other_exit(raw):
        raw["cases"][0]["outcomes"]["fast"]["exit"] = 1

    vectors = conformance(tiny)

    def other_answer(raw):
        outcome = raw["cases"][0]["outcomes"]["fast"]
        if "label" in outcome:
            outcome["label"] = "another"
        elif "value" in outcome:
            outcome["value"] += 8 * 2 * vectors.tolerance
        else:
            outcome["start"], outcome["end"] = outcome["start"] + 1, outcome["end"] + 1

    assert failed(tiny, edited(vectors, other_exit)) == {("loop", "outcome_agreement")}
    # The runner's answer is the best by the vectors' logits, but the outcome states another one.
    assert failed(tiny, edited(vectors, other_answer)) == {("loop", "outcome_agreement")}


def test_wrong_ids_fail_the_tokenizer(tiny):
    def change(raw):
        case = raw["cases"][0]
        key = "text" if "text" in case else "question"
        case[key] = case[key].replace(".", "!")

    assert ("tokenizer", "token_agreement") in failed(tiny, edited(conformance(tiny), change))


def test_programs_in_the_wrong_order_fail(tiny, tmp_path):
    """Two segments have the same inputs and outputs, so only the numbers show that they are swapped."""
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny.path, bundle)
    raw = json.loads((bundle / "manifest.json").read_text())
    for program in raw["programs"]:
        program["method"] = {"segment_0": "segment_1", "segment_1": "segment_0"}.get(
            program["method"], program["method"]
        )
    (bundle / "manifest.json").write_text(json.dumps(raw))
    assert failed(tiny, conformance(tiny), bundle) >= {
        (f"segment_{segment}", metric) for segment in (0, 1) for metric in ("logits_snr_db", "within_tolerance")
    }


@pytest.fixture(params=["patient_classifier", "patient_qa", "agreeing_classifier", "agreeing_qa"])
def patient(request):
    return request.getfixturevalue(request.param)


def test_the_exits_of_a_bundle_that_counts_answers_are_checked(patient):
    vectors = conformance(patient)
    assert not {failure for failure in failed(patient, vectors) if failure[0] in ("loop", "tokenizer")}

    def always(exit: int):
        def change(raw):
            for case in raw["cases"]:
                case["outcomes"]["once"]["exit"] = exit

        return change

    # Some examples leave at that exit, but not all of them.
    for exit in (1, 3):
        assert ("loop", "outcome_agreement") in failed(patient, edited(vectors, always(exit)))


def test_a_runner_that_ignores_patience_fails(patient, monkeypatch):
    from pipeline.runtime import runner

    monkeypatch.setattr(
        runner, "compared_uncertainty", lambda measure, by_program, answers: 0.0 if len(answers) == 2 else 1.0
    )
    assert ("loop", "outcome_agreement") in failed(patient, conformance(patient))


def test_a_bundle_without_cases_does_not_pass(tiny):
    vectors = conformance(tiny).model_copy(update={"cases": []})
    assert ("loop", "outcome_agreement") in failed(tiny, vectors)


def with_scheme(tiny, scheme: str, **changes):
    """The bundle's manifest as if its programs were of another scheme."""
    programs = [program.model_copy(update={"precision": scheme}) for program in tiny.manifest.programs]
    return tiny.manifest.model_copy(update={"scheme": scheme, "programs": programs, **changes})


def snr_floors(tiny, manifest) -> set[float]:
    checks = check_executorch(tiny.path, manifest, conformance(tiny))
    return {check.floor for check in checks if check.metric == "logits_snr_db"}


@pytest.mark.parametrize(
    ("scheme", "floor"), [("fp32", 60.0), ("fp16", 40.0), ("int8", 25.0), ("int4", 25.0), ("int8-a16", 60.0)]
)
def test_a_scheme_has_the_floor_that_its_arithmetic_reaches(tiny_classifier, scheme, floor):
    """Inputs of 16 bits do not round to another int8 step: 73 to 84 dB were measured where int8 inputs have 32."""
    assert snr_floors(tiny_classifier, with_scheme(tiny_classifier, scheme)) == {floor}


def test_a_scheme_that_this_version_does_not_know_is_refused(tiny_classifier):
    with pytest.raises(
        UserError, match=r"manifest.json: scheme: 'int3' is not known to this version.*export the bundle"
    ):
        snr_floors(tiny_classifier, with_scheme(tiny_classifier, "int3"))
