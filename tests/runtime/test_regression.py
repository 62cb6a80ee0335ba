"""A regression predicts in the data's unit, leaves where two exits nearly agree, and is scored by correlations."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.bench.study import study_bundle
from pipeline.bundle.conformance import Conformance
from pipeline.bundle.opening import Bundle
from pipeline.data.features import encode_text
from pipeline.data.labels import LabelRange
from pipeline.exits.study_document import Study
from pipeline.runtime.evaluate import evaluate
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError

INT8_STEP = 0.02  # the effect of one int8 step of an activation, as a share of the label range; float32 has 1e-6


@pytest.fixture(scope="module")
def bundle(tiny_regressor) -> Bundle:
    return Bundle.open(tiny_regressor.path)


@pytest.fixture(scope="module")
def shares(tiny_regressor, bundle) -> np.ndarray:
    """The predictions of the PyTorch programs at every exit, as shares of the label range, [examples, exits]."""
    rows = []
    for example in tiny_regressor.examples:
        ids = encode_text(bundle.tokenizer, example.text, example.text_pair, 64).ids
        outputs = tiny_regressor.programs(torch.from_numpy(ids)[None], torch.zeros(1, 1, len(ids)))
        rows.append([float(logits) for _, logits in outputs])
    return np.array(rows)


def test_predictions_are_in_the_datas_unit_and_leave_where_two_exits_agree(tiny_regressor, bundle, shares):
    runner, taken = Runner(bundle), []
    for example, row in zip(tiny_regressor.examples, shares):
        full = runner.estimate(example.text, example.text_pair, 0)
        assert full.value == pytest.approx(-2 + 8 * row[-1], abs=8 * INT8_STEP)
        assert full.uncertainty == pytest.approx([1.0, *np.minimum(np.abs(np.diff(row)), 1)], abs=2 * INT8_STEP)
        threshold = float(np.mean(full.uncertainty[1:3]))  # above one of the two, unless they are equal
        result = runner.estimate(example.text, example.text_pair, threshold)
        exit = next((exit for exit in range(4) if full.uncertainty[exit] < threshold), 3)
        assert (result.exit, result.depth, result.uncertainty) == (exit, exit + 1, full.uncertainty[: exit + 1])
        assert result.value == pytest.approx(-2 + 8 * row[exit], abs=8 * INT8_STEP)
        taken.append(result.exit)
        raw = result.to_json()
        assert json.loads(json.dumps(raw)) == raw
        assert set(raw) == {"value", "exit", "depth", "uncertainty", "latency_ms", "truncated"}
    assert {1, 2} <= set(taken)  # otherwise the test proves nothing


def test_only_a_threshold_above_1_leaves_at_the_first_exit(tiny_regressor, bundle):
    example, runner = tiny_regressor.examples[0], Runner(bundle)
    assert runner.estimate(example.text, example.text_pair, 1).exit == 1
    first = runner.estimate(example.text, example.text_pair, 1.01)
    assert (first.exit, first.uncertainty) == (0, (1.0,))


def test_an_evaluation_gives_scipys_correlations(tiny_regressor, bundle):
    raw = evaluate(bundle, tiny_regressor.examples, ["0", "exact", 1.1]).to_json()
    runner, labels = Runner(bundle), [example.label for example in tiny_regressor.examples]
    assert raw["task"] == "regression" and json.loads(json.dumps(raw)) == raw
    for speed in raw["speeds"]:
        values = [
            runner.estimate(example.text, example.text_pair, speed["speed"]).value
            for example in tiny_regressor.examples
        ]
        assert speed["pearson"] == pytest.approx(stats.pearsonr(values, labels).statistic)
        assert speed["spearman"] == pytest.approx(stats.spearmanr(values, labels).statistic)
        assert speed["mean_absolute_error"] == pytest.approx(np.mean(np.abs(np.subtract(values, labels))))
        assert set(speed) == {
            "speed",
            "pearson",
            "spearman",
            "mean_absolute_error",
            "mean_depth",
            "exits",
            "latency_ms",
        }
    assert [speed["exits"] for speed in (raw["speeds"][0], raw["speeds"][2])] == [[0, 0, 0, 24], [24, 0, 0, 0]]
    assert 2 < raw["speeds"][1]["mean_depth"] < 4
    (one,) = evaluate(bundle, tiny_regressor.examples[:1], ["0"]).to_json()["speeds"]
    assert "pearson" not in one and one["mean_absolute_error"] > 0  # a single point has no correlation


def test_a_study_describes_what_the_speeds_do(tiny_regressor, bundle):
    result = study_bundle(bundle, tiny_regressor.examples)
    assert Study.model_validate_json(json.dumps(result.model_dump())) == result
    assert (result.task, result.metric, [measured.measure for measured in result.measures]) == (
        "regression",
        "one_minus_nmae",
        ["change"],
    )
    assert all(ranking.auroc is None for ranking in result.own.rankings)  # a distance is neither right nor wrong
    runner, (exact,) = Runner(bundle), evaluate(bundle, tiny_regressor.examples, ["exact"]).speeds
    runs = [runner.estimate(example.text, example.text_pair, "exact") for example in tiny_regressor.examples]
    errors = [min(1.0, abs(run.value - example.label) / 8) for run, example in zip(runs, tiny_regressor.examples)]
    assert result.speeds[0].score == pytest.approx(1 - np.mean(errors), abs=1e-6)
    assert result.speeds[0].exits == exact.exits


def test_predictions_are_those_of_the_conformance_vectors(tiny_regressor, bundle):
    runner, vectors = (
        Runner(bundle),
        Conformance.model_validate_json((tiny_regressor.path / "conformance.json").read_bytes()),
    )
    same = []
    for case in vectors.cases:
        for speed, outcome in case.outcomes.items():
            exits = case.windows[0].exits
            logits = [exit.outputs["logits"][0] for exit in exits]
            assert [exit.uncertainty for exit in exits] == pytest.approx(
                [1.0, *np.minimum(np.abs(np.diff(logits)), 1)], rel=1e-5
            )
            assert outcome.value == pytest.approx(-2 + 8 * logits[outcome.exit], rel=1e-5)
            result = runner.estimate(case.text, case.text_pair, speed)
            same.append(result.exit == outcome.exit and abs(result.value - outcome.value) <= 8 * INT8_STEP)
    # int8 sums in another order may fall on the other side of a threshold; `verify` recognises those.
    assert np.mean(same) >= 0.9


def test_calls_that_do_not_fit_a_regression_are_refused(tiny_regressor, tiny_classifier, tiny_qa, bundle, tmp_path):
    runner = Runner(bundle)
    with pytest.raises(UserError, match="predicts a number; give it a text"):
        runner.classify("bala")
    with pytest.raises(UserError, match="this bundle classifies"):
        Runner(Bundle.open(tiny_classifier.path)).estimate("bala")
    with pytest.raises(UserError, match="text_pair: is empty"):
        runner.estimate("bala", " ")
    with pytest.raises(UserError, match="dev.tsv: example 2: has no label"):
        evaluate(
            bundle,
            [tiny_regressor.examples[0], replace(tiny_regressor.examples[1], label=None)],
            ["0"],
            source="dev.tsv",
        )
    with pytest.raises(UserError, match="not of the bundle's task, regression"):
        evaluate(bundle, tiny_qa.examples, ["0"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_range": None}, "label_range: is missing"),
        ({"label_range": {"minimum": 3, "maximum": 3}}, "label_range: minimum is not below maximum"),
        ({"exits": {"uncertainty": "entropy"}}, "exits.uncertainty: 'entropy' is no measure for regression"),
    ],
)
def test_a_manifest_whose_parts_do_not_fit_is_refused(tiny_regressor, tmp_path, change, message):
    shutil.copytree(tiny_regressor.path, tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    raw = json.loads(path.read_text())
    assert LabelRange(**raw["label_range"]) == LabelRange(minimum=-2, maximum=6)
    path.write_text(json.dumps(raw | change))
    with pytest.raises(UserError, match=message):
        Bundle.open(tmp_path / "bundle")
