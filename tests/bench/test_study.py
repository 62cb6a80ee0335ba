"""Tests that the study of a bundle agrees with what the runner does at every speed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.bench.study import bundle_recipe, example_costs, run_to_full_depth, study_bundle
from pipeline.bundle.opening import Bundle
from pipeline.data.features import encode_text
from pipeline.exits.study_document import Study
from pipeline.model.encoder import EncoderConfig
from pipeline.model.flops import model_flops
from pipeline.runtime.evaluate import evaluate
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError
from pipeline.tasks import get_task


def encoded(bundle: Bundle, examples):
    """The inputs of each example."""
    return get_task(bundle.manifest.task).encode_all(examples, bundle.tokenizer, bundle.manifest.answer_context.options)


@pytest.fixture(scope="module", params=["classification", "qa"])
def tiny(request):
    return request.getfixturevalue("tiny_classifier" if request.param == "classification" else "tiny_qa")


def with_exits(bundle: Bundle, **changes) -> Bundle:
    exits = bundle.manifest.exits.model_copy(update=changes)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"exits": exits}))


@pytest.mark.parametrize("measure", ["entropy", "patience"])
def test_every_speed_of_the_study_agrees_with_evaluate(tiny, measure):
    bundle = with_exits(Bundle.open(tiny.path), uncertainty=measure)
    steps = []
    result = study_bundle(
        bundle, tiny.examples, on_progress=lambda what, done, total: steps.append((what, done, total))
    )
    assert Study.model_validate_json(json.dumps(result.model_dump())) == result
    assert result.own.measure == measure and any(done == total for _, done, total in steps)
    names = [speed.speed for speed in result.speeds]
    assert names == ["exact", "fast"]
    full, *speeds = evaluate(bundle, tiny.examples, ["0", *names]).speeds
    for studied, evaluated in zip(result.speeds, speeds):
        assert studied.exits == evaluated.exits and studied.mean_depth == pytest.approx(evaluated.mean_depth)
        assert studied.score == pytest.approx(
            evaluated.accuracy if result.task == "classification" else evaluated.f1, abs=1e-6
        )
    assert result.full_depth == pytest.approx(full.accuracy if result.task == "classification" else full.f1, abs=1e-6)
    # The runner also takes a point of the curve, one threshold for all exits.
    curve = result.own.curve
    middle = len(curve.thresholds) // 2
    (evaluated,) = evaluate(bundle, tiny.examples, [curve.thresholds[middle]]).speeds
    assert curve.mean_depth[middle] == pytest.approx(evaluated.mean_depth)


def test_other_measures_are_studied_beside_the_bundles_own(tiny):
    measures = [result.measure for result in study_bundle(Bundle.open(tiny.path), tiny.examples, 8).measures]
    assert measures[0] == "entropy" and len(set(measures)) == len(measures)
    assert {"max_probability", "margin", "patience"} <= set(measures)
    assert ({"span_entropy", "span_probability"} <= set(measures)) == (tiny.manifest.task == "qa")


def test_other_measures_use_the_temperatures_of_the_programs(tiny):
    bundle = Bundle.open(tiny.path)
    plain, hot = (
        study_bundle(studied, tiny.examples, 8) for studied in (bundle, with_exits(bundle, temperatures=[3.0, 1.0]))
    )
    assert hot.own == plain.own  # the programs have already applied them to their own uncertainty
    assert hot.measures[1].curve != plain.measures[1].curve


def test_the_programs_run_once_for_each_input(tiny, monkeypatch):
    ran = []
    original = Runner.run_all
    monkeypatch.setattr(
        Runner, "run_all", lambda self, ids, mask=None: ran.append(len(ids)) or original(self, ids, mask)
    )
    bundle = Bundle.open(tiny.path)
    study_bundle(bundle, tiny.examples, 4)
    groups = encoded(bundle, tiny.examples[:4])
    inputs = [len(model_input.ids) for group in groups for model_input in group]
    assert bundle.manifest.task == "classification" or len(inputs) > 4
    assert sorted(ran) == sorted(inputs)


def test_the_costs_of_a_classifier_grow_with_depth_and_follow_the_lengths(tiny_classifier):
    bundle = Bundle.open(tiny_classifier.path)
    costs = example_costs(bundle, tiny_classifier.examples, bundle_recipe(bundle.manifest))
    for row, example in enumerate(tiny_classifier.examples[:5]):
        length = len(encode_text(bundle.tokenizer, example.text, example.text_pair, 64).ids)
        assert costs.length[row] == length
    assert (np.diff(costs.flops, axis=1) > 0).all()
    # Both segments have a layer and a head, and the embeddings before them cost nothing.
    assert costs.flops[:, 1] == pytest.approx(2 * costs.flops[:, 0])


def test_the_costs_of_a_question_include_all_its_windows(tiny_qa):
    bundle = Bundle.open(tiny_qa.path)
    recipe = bundle_recipe(bundle.manifest)
    costs = example_costs(bundle, tiny_qa.examples, recipe)
    shape = bundle.manifest.model
    config = EncoderConfig(hidden_size=shape.hidden_size, layers=2, heads=4, intermediate_size=shape.intermediate_size)
    for row, example in enumerate(tiny_qa.examples):
        (windows,) = encoded(bundle, [example])
        expected = sum(model_flops(config, shape.head, "qa", 2, len(window), 1, (1, 2)) for window in windows)
        assert costs.flops[row, 0] == pytest.approx(expected)
        assert costs.length[row] == len(bundle.tokenizer.encode(example.passage).ids)


def test_labels_may_be_values_or_names(tiny_classifier):
    bundle = Bundle.open(tiny_classifier.path)
    names = [
        replace(example, label=("low", "middle", "high")[int(example.label)]) for example in tiny_classifier.examples
    ]
    assert study_bundle(bundle, names, 6) == study_bundle(bundle, tiny_classifier.examples, 6)


def test_examples_that_cannot_be_studied_are_refused(tiny_classifier, tiny_qa):
    bundle = Bundle.open(tiny_classifier.path)
    with pytest.raises(UserError, match="dev.tsv: has no examples"):
        study_bundle(bundle, [], source="dev.tsv")
    with pytest.raises(UserError, match="dev.tsv: example 2: has no label"):
        study_bundle(
            bundle, [tiny_classifier.examples[0], replace(tiny_classifier.examples[1], label=None)], source="dev.tsv"
        )
    with pytest.raises(UserError, match="not of the bundle's task"):
        study_bundle(bundle, tiny_qa.examples)


def test_outputs_are_those_of_the_runner(tiny):
    bundle = Bundle.open(tiny.path)
    runner = Runner(bundle)
    if tiny.manifest.task == "classification":
        ((item,),) = encoded(bundle, tiny.examples[:1])
        (output,) = run_to_full_depth(runner, [item])
        result = runner.classify(tiny.examples[0].text, tiny.examples[0].text_pair, "0")
        assert output.logits[-1].tolist() == list(result.logits) and tuple(output.uncertainty) == result.uncertainty
    else:
        windowed = zip(tiny.examples, encoded(bundle, tiny.examples))
        question, (window,) = next((example, windows) for example, windows in windowed if len(windows) == 1)
        (output,) = run_to_full_depth(runner, [window])
        assert tuple(output.uncertainty) == runner.answer(question.question, question.passage, "0").uncertainty
        assert output.logits.shape == (2, len(window), 2)
