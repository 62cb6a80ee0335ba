"""Several scored answers on request, and batches that give what single calls give."""

from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch

from pipeline.bundle.opening import Bundle
from pipeline.data.windows import make_windows
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError


@pytest.fixture(scope="module")
def classifier(tiny_classifier):
    return Runner(Bundle.open(tiny_classifier.path))


@pytest.fixture(scope="module")
def reader(tiny_qa):
    return Runner(Bundle.open(tiny_qa.path))


@pytest.fixture(scope="module")
def estimator(tiny_regressor):
    return Runner(Bundle.open(tiny_regressor.path))


def untimed(result):
    return replace(result, latency_ms=0.0)


def test_the_candidates_are_the_labels_by_their_probability(classifier):
    result = classifier.classify("bala dume nofi", speed=0, top_k=9)
    expected = torch.softmax(torch.tensor(result.logits), dim=-1)
    order = expected.argsort(descending=True).tolist()
    assert [candidate.label_index for candidate in result.candidates] == order
    assert [candidate.score for candidate in result.candidates] == pytest.approx(expected[order].tolist(), abs=1e-6)
    assert [candidate.label for candidate in result.candidates] == [("low", "middle", "high")[k] for k in order]
    first = result.candidates[0]
    assert (first.label, first.label_value, first.score) == (result.label, result.label_value, result.score)
    assert len(classifier.classify("bala dume nofi", top_k=2).candidates) == 2
    assert len(classifier.classify("bala dume nofi").candidates) == 1


def test_the_candidates_are_the_best_spans_of_all_windows(reader, tiny_qa):
    """Compared with a list of all spans of all windows, at full depth."""
    options, several = tiny_qa.manifest.qa, 0
    for example in tiny_qa.examples:
        windows = make_windows(
            reader.bundle.tokenizer, example.question, example.passage,
            options.window, options.stride, options.max_question, True,
        )  # fmt: skip
        several += len(windows) > 1
        expected, nulls = {}, []
        for window in windows:
            starts, ends = (
                logits.astype(np.float64) for logits in reader.run_all(window.ids, window.answer_mask)[-1].logits
            )
            nulls.append(starts[0] + ends[0])
            for first in range(window.passage_start, len(window) - 1):
                for last in range(first, min(first + options.max_answer, len(window) - 1)):
                    place = int(window.offsets[first, 0]), int(window.offsets[last, 1])
                    expected[place] = max(expected.get(place, -np.inf), starts[first] + ends[last])
        expected[-1, -1] = min(nulls)
        result = reader.answer(example.question, example.passage, "full", top_k=7)
        assert [answer.logit for answer in result.candidates] == sorted(expected.values(), reverse=True)[:7]
        for answer in result.candidates:
            assert expected[answer.start, answer.end] == answer.logit and 0 <= answer.score <= 1
            assert answer.answer == ("" if answer.start < 0 else example.passage[answer.start : answer.end])
        first = result.candidates[0]
        assert (first.answer, first.start, first.end, first.score) == (
            result.answer,
            result.start,
            result.end,
            result.score,
        )
    assert several > 2


def test_json_has_candidates_on_request_alone(classifier, reader):
    label, answer = classifier.classify("bala", top_k=2), reader.answer("bala?", "dume nofi.", top_k=3)
    for result in (label, answer):
        assert "candidates" not in result.to_json()
        shown = result.to_json(candidates=True)
        assert shown.pop("candidates") and shown == result.to_json()
    assert set(label.to_json(candidates=True)["candidates"][0]) == {"label", "label_value", "score"}
    assert set(answer.to_json(candidates=True)["candidates"][0]) == {"answer", "start", "end", "score", "logit"}


def test_batches_are_the_single_calls_in_order(classifier, reader, estimator, tiny_classifier, tiny_qa):
    texts = [
        example.text if example.text_pair is None else (example.text, example.text_pair)
        for example in tiny_classifier.examples
    ]
    as_pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    for batch, single in (
        (
            classifier.classify_batch(iter(texts), speed="fast", top_k=2),
            lambda *pair: classifier.classify(*pair, "fast", 2),
        ),
        (estimator.estimate_batch(texts), estimator.estimate),
    ):
        assert [untimed(result) for result in batch] == [untimed(single(*pair)) for pair in as_pairs]
    questions = [(example.question, example.passage) for example in tiny_qa.examples[:4]]
    answers = reader.answer_batch(questions, top_k=2)
    assert [untimed(result) for result in answers] == [untimed(reader.answer(*pair, top_k=2)) for pair in questions]
    assert classifier.classify_batch([]) == []


def test_threads_share_a_runner(classifier, tiny_classifier):
    texts = [example.text for example in tiny_classifier.examples]
    runner = Runner(classifier.bundle)  # nothing is loaded yet
    results = [[] for _ in range(4)]
    threads = [Thread(target=lambda found=found: found.extend(runner.classify_batch(texts))) for found in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [untimed(result) for result in classifier.classify_batch(texts)]
    assert all([untimed(result) for result in found] == expected for found in results)


def test_what_cannot_be_given_is_refused(classifier, reader, estimator):
    for call, message in (
        (lambda: classifier.classify("bala", top_k=0), "top_k: 0 is too few"),
        (lambda: estimator.predict(estimator.task.example_from_request(text("bala")), top_k=2), "no other candidates"),
        (lambda: classifier.classify_batch(["bala", " "]), r"texts\[1\]: text: is empty"),
        (lambda: reader.answer_batch([("bala", "")]), r"pairs\[0\]: passage: is empty"),
        (lambda: reader.classify_batch(["bala"]), "answers questions"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(TypeError, match="not one text"):
        classifier.classify_batch("bala")


def text(words):
    from pipeline.tasks import Request

    return Request(words)


def test_a_runner_says_what_it_runs(classifier, reader):
    assert classifier.labels == ("low", "middle", "high") and reader.labels == ()
    assert classifier.speeds == ("exact", "fast", "full")
    assert repr(classifier) == "<Runner of tiny-classifier: classification, 2 segments, speeds exact, fast, full>"
