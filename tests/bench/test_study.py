"""The study of a bundle is of what its runner does, at every speed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.bench.study import costs_of, recipe_of, run_bundle, study_bundle
from pipeline.bundle.opening import Bundle
from pipeline.data.features import encode_text
from pipeline.exits.study_document import Study
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
def test_every_speed_is_what_evaluating_it_gives(tiny, measure):
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
    for said, counted in zip(result.speeds, speeds):
        assert said.exits == counted.exits and said.mean_depth == pytest.approx(counted.mean_depth)
        assert said.score == pytest.approx(
            counted.accuracy if result.task == "classification" else counted.f1, abs=1e-6
        )
    assert result.full_depth == pytest.approx(full.accuracy if result.task == "classification" else full.f1, abs=1e-6)
    # A threshold for all exits, too, is one that the runner takes.
    curve = result.own.curve
    middle = len(curve.thresholds) // 2
    (counted,) = evaluate(bundle, tiny.examples, [curve.thresholds[middle]]).speeds
    assert curve.mean_depth[middle] == pytest.approx(counted.mean_depth)


def test_alternatives_are_studied_beside_the_bundles_own(tiny):
    measures = [each.measure for each in study_bundle(Bundle.open(tiny.path), tiny.examples, 8).measures]
    assert measures[0] == "entropy" and len(set(measures)) == len(measures)
    assert {"max_probability", "margin", "patience"} <= set(measures)
    assert ({"span_entropy", "span_probability"} <= set(measures)) == (tiny.manifest.task == "qa")


def test_alternatives_have_the_temperatures_that_the_programs_have(tiny):
    bundle = Bundle.open(tiny.path)
    plain, hot = (
        study_bundle(each, tiny.examples, 8) for each in (bundle, with_exits(bundle, temperatures=[3.0, 1.0]))
    )
    assert hot.own == plain.own  # what the programs say has them in it
    assert hot.measures[1].curve != plain.measures[1].curve


def test_programs_run_once_for_each_input(tiny, monkeypatch):
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


def test_a_classifiers_costs(tiny_classifier):
    bundle = Bundle.open(tiny_classifier.path)
    costs = costs_of(bundle, tiny_classifier.examples, recipe_of(bundle.manifest))
    for row, example in enumerate(tiny_classifier.examples[:5]):
        length = len(encode_text(bundle.tokenizer, example.text, example.text_pair, 64).ids)
        assert costs.length[row] == length
    assert (np.diff(costs.flops, axis=1) > 0).all()
    assert costs.flops[:, 1] == pytest.approx(
        2 * costs.flops[:, 0]
    )  # a layer and a head each, after embeddings that cost nothing


def test_all_windows_of_a_question_cost(tiny_qa):
    from pipeline.model.encoder import EncoderConfig

    bundle = Bundle.open(tiny_qa.path)
    recipe = recipe_of(bundle.manifest)
    costs = costs_of(bundle, tiny_qa.examples, recipe)
    shape = bundle.manifest.model
    config = EncoderConfig(hidden_size=shape.hidden_size, layers=2, heads=4, intermediate_size=shape.intermediate_size)
    for row, example in enumerate(tiny_qa.examples):
        (windows,) = encoded(bundle, [example])
        expected = sum(model_flops(config, shape.head, "qa", 2, len(window), 1, (1, 2)) for window in windows)
        assert costs.flops[row, 0] == pytest.approx(expected)
        assert costs.length[row] == len(bundle.tokenizer.encode(example.passage).ids)


def test_labels_are_values_or_names(tiny_classifier):
    bundle = Bundle.open(tiny_classifier.path)
    names = [
        replace(example, label=("low", "middle", "high")[int(example.label)]) for example in tiny_classifier.examples
    ]
    assert study_bundle(bundle, names, 6) == study_bundle(bundle, tiny_classifier.examples, 6)


def test_what_cannot_be_studied_is_refused(tiny_classifier, tiny_qa):
    bundle = Bundle.open(tiny_classifier.path)
    with pytest.raises(UserError, match="dev.tsv: has no examples"):
        study_bundle(bundle, [], source="dev.tsv")
    with pytest.raises(UserError, match="dev.tsv: example 2: has no label"):
        study_bundle(
            bundle, [tiny_classifier.examples[0], replace(tiny_classifier.examples[1], label=None)], source="dev.tsv"
        )
    with pytest.raises(UserError, match="not of the bundle's task"):
        study_bundle(bundle, tiny_qa.examples)


def test_outputs_are_the_runners(tiny):
    bundle = Bundle.open(tiny.path)
    runner = Runner(bundle)
    if tiny.manifest.task == "classification":
        ((item,),) = encoded(bundle, tiny.examples[:1])
        (output,) = run_bundle(runner, [item])
        said = runner.classify(tiny.examples[0].text, tiny.examples[0].text_pair, "0")
        assert output.logits[-1].tolist() == list(said.logits) and tuple(output.uncertainty) == said.uncertainty
    else:
        asked = zip(tiny.examples, encoded(bundle, tiny.examples))
        question, (window,) = next((example, windows) for example, windows in asked if len(windows) == 1)
        (output,) = run_bundle(runner, [window])
        assert tuple(output.uncertainty) == runner.answer(question.question, question.passage, "0").uncertainty
        assert output.logits.shape == (2, len(window), 2)
