"""An evaluation counts what the runner does, and refuses examples that it cannot compare with."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.bundle.opening import Bundle
from pipeline.data.examples import Answer
from pipeline.runtime.evaluate import evaluate
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError


@pytest.fixture(scope="module")
def classifier(tiny_classifier):
    return Bundle.open(tiny_classifier.path)


@pytest.fixture(scope="module")
def reader(tiny_qa):
    return Bundle.open(tiny_qa.path)


def test_accuracy_exits_and_latency_of_a_classifier_are_those_of_its_runs(classifier, tiny_classifier):
    steps = []
    result = evaluate(
        classifier,
        tiny_classifier.examples,
        ["0", "exact", 1.1],
        on_progress=lambda what, done, total: steps.append((done, total)),
    )
    raw = result.to_json()
    assert json.loads(json.dumps(raw)) == raw
    assert set(raw) == {"task", "examples", "speeds"}
    assert (raw["task"], raw["examples"], [speed["speed"] for speed in raw["speeds"]]) == (
        "classification",
        24,
        ["0", "exact", "1.1"],
    )
    assert steps == [(done, 24) for done in range(1, 25)]
    runner = Runner(classifier)
    for speed in raw["speeds"]:
        runs = [
            runner.classify(example.text, example.text_pair, speed["speed"]) for example in tiny_classifier.examples
        ]
        right = sum(run.label_value == example.label for run, example in zip(runs, tiny_classifier.examples))
        assert 0 < right < 24
        assert speed["accuracy"] == right / 24
        assert speed["exits"] == [sum(run.exit == exit for run in runs) for exit in (0, 1)]
        assert speed["mean_depth"] == pytest.approx((speed["exits"][0] + 2 * speed["exits"][1]) / 24)
        assert 0 < speed["latency_ms"]["p50"] <= speed["latency_ms"]["p95"]
        assert set(speed) == {"speed", "accuracy", "mean_depth", "exits", "latency_ms"}
    full, exact, first = raw["speeds"]
    assert (full["exits"], first["exits"]) == ([0, 24], [24, 0])
    assert 1 < exact["mean_depth"] < 2


def test_the_latency_of_a_speed_is_that_of_its_own_runs(classifier, tiny_classifier, monkeypatch):
    clock = {"0": iter(range(1, 100)), "fast": iter(range(1000, 1100))}
    original = Runner.predict
    order = []

    def timed(self, example, speed=None):
        order.append(speed)
        return replace(original(self, example, speed), latency_ms=float(next(clock[speed])))

    monkeypatch.setattr(Runner, "predict", timed)
    full, fast = evaluate(classifier, tiny_classifier.examples, ["0", "fast"], limit=20).speeds
    warm_up = len(order) - 40
    assert warm_up > 0 and order[:warm_up] == ["0"] * warm_up
    # The speeds take turns, and so does the speed that goes first.
    assert order[warm_up : warm_up + 6] == ["0", "fast", "fast", "0", "0", "fast"]
    counted = np.arange(1 + warm_up, 21 + warm_up)
    assert full.latency_ms.mean == counted.mean()
    assert full.latency_ms.p95 == np.percentile(counted, 95)
    assert fast.latency_ms.p50 == np.median(np.arange(1000, 1020))


def test_labels_may_be_written_as_values_or_as_names(classifier, tiny_classifier):
    names = [
        replace(example, label=("low", "middle", "high")[int(example.label)]) for example in tiny_classifier.examples
    ]
    by_name, by_value = (evaluate(classifier, data, ["0"]).speeds[0] for data in (names, tiny_classifier.examples))
    assert by_name.accuracy == by_value.accuracy
    with pytest.raises(UserError, match="'high'.*0, 1, 2.*low, middle, high"):
        evaluate(
            classifier, [names[0], *tiny_classifier.examples, replace(names[0], label="high")], ["0"], source="dev.tsv"
        )


def test_answers_are_scored_by_squads_metric(reader, tiny_qa):
    runner = Runner(reader)
    answers = [runner.answer(example.question, example.passage, "0") for example in tiny_qa.examples]
    right = [
        replace(example, answers=(Answer("zzz", 0), Answer(result.answer, result.start)) if result.answer else ())
        for example, result in zip(tiny_qa.examples, answers)
    ]
    (speed,) = evaluate(reader, right, ["0"]).to_json()["speeds"]
    assert (speed["exact_match"], speed["f1"]) == (1.0, 1.0)
    assert "accuracy" not in speed
    # With one word too many in each answer, nothing matches exactly, but F1 stays high.
    longer = [
        replace(example, answers=(Answer(result.answer + " zzz", result.start),))
        for example, result in zip(tiny_qa.examples, answers)
        if result.answer
    ]
    (speed,) = evaluate(reader, longer, ["0"]).to_json()["speeds"]
    assert speed["exact_match"] == 0.0
    assert 0.5 < speed["f1"] < 1.0


def test_a_limit_takes_the_first_examples(classifier, tiny_classifier):
    result = evaluate(classifier, tiny_classifier.examples, ["0"], limit=7)
    assert result.examples == 7 and sum(result.speeds[0].exits) == 7
    assert result.speeds[0].accuracy == evaluate(classifier, tiny_classifier.examples[:7], ["0"]).speeds[0].accuracy


def test_examples_that_cannot_be_evaluated_are_refused(classifier, reader, tiny_classifier, tiny_qa):
    unlabelled = [*tiny_classifier.examples[:2], replace(tiny_classifier.examples[2], label=None)]
    with pytest.raises(UserError, match="dev.tsv: example 3: has no label"):
        evaluate(classifier, unlabelled, ["0"], source="dev.tsv")
    unanswerable = replace(reader, manifest=reader.manifest.model_copy(
        update={"qa": reader.manifest.qa.model_copy(update={"allow_no_answer": False})}
    ))  # fmt: skip
    with pytest.raises(UserError, match="no question has an answer"):
        evaluate(unanswerable, [replace(example, answers=()) for example in tiny_qa.examples], ["0"])
    for bundle, examples, speeds in (
        (classifier, [], ["0"]),
        (classifier, tiny_classifier.examples, []),
        (classifier, tiny_classifier.examples, ["0", "quick"]),
        (classifier, tiny_qa.examples, ["0"]),
        (reader, tiny_classifier.examples, ["0"]),
    ):
        with pytest.raises(UserError):
            evaluate(bundle, examples, speeds)
