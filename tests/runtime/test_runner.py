"""The runner computes what the PyTorch programs compute, leaves where the exit rule says, and imports no trainer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.bundle.conformance import Conformance
from pipeline.bundle.opening import Bundle
from pipeline.data.windows import make_windows
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError

ROOT = Path(__file__).parents[2]
# The effect of one int8 step of an activation on the logits of these models (about 2); float32 differs by 1e-6.
INT8_STEP = 0.05


@pytest.fixture(scope="module")
def classifier(tiny_classifier):
    return Runner(Bundle.open(tiny_classifier.path))


@pytest.fixture(scope="module")
def reader(tiny_qa):
    return Runner(Bundle.open(tiny_qa.path))


def conformance(tiny):
    return Conformance.model_validate_json((tiny.path / "conformance.json").read_bytes())


def eager(programs, ids, answer_mask=None):
    """Returns the logits and the uncertainty of every segment by the PyTorch programs."""
    bias = None if answer_mask is None else (1.0 - torch.tensor(answer_mask, dtype=torch.float32))[None] * -1e4
    outputs = programs(torch.tensor(ids)[None], torch.zeros(1, 1, len(ids)), bias)
    return [([part.flatten().numpy() for part in output[1:-1]], output[-1].item()) for output in outputs]


@pytest.mark.parametrize("length", [2, 3, 17, 64])
def test_every_exit_is_that_of_the_pytorch_programs(classifier, tiny_classifier, length):
    ids = np.random.default_rng(length).integers(0, tiny_classifier.manifest.tokenizer.vocab_size, length)
    expected = eager(tiny_classifier.programs, ids)
    result = classifier.run_all(ids)
    assert len(result) == len(expected) == 2
    for output, (logits, uncertainty) in zip(result, expected):
        np.testing.assert_allclose(output.logits[0], logits[0], atol=INT8_STEP)
        assert output.uncertainty == pytest.approx(uncertainty, abs=INT8_STEP)


def test_span_logits_are_those_of_the_pytorch_programs(reader, tiny_qa):
    ids = np.random.default_rng(0).integers(0, tiny_qa.manifest.tokenizer.vocab_size, 40)
    mask = np.arange(40) > 10
    for output, (logits, uncertainty) in zip(reader.run_all(ids, mask), eager(tiny_qa.programs, ids, mask)):
        assert len(output.logits) == len(logits) == 2
        np.testing.assert_allclose(output.logits, logits, atol=INT8_STEP)
        assert output.uncertainty == pytest.approx(uncertainty, abs=INT8_STEP)


def test_threshold_0_is_full_depth_and_above_1_the_first_exit(classifier, reader, tiny_classifier, tiny_qa):
    text, question = tiny_classifier.examples[0], tiny_qa.examples[1]
    for run in (
        lambda speed: classifier.classify(text.text, text.text_pair, speed),
        lambda speed: reader.answer(question.question, question.passage, speed),
    ):
        deep, shallow = run(0), run(1.1)
        assert (deep.exit, deep.depth, len(deep.uncertainty)) == (1, 2, 2)
        assert (shallow.exit, shallow.depth, len(shallow.uncertainty)) == (0, 1, 1)
        assert shallow.uncertainty[0] == deep.uncertainty[0]


def test_a_calibrated_speed_is_the_default_and_some_texts_leave_early(classifier, tiny_classifier):
    threshold = tiny_classifier.manifest.speeds["exact"].thresholds[0]
    exits = set()
    for example in tiny_classifier.examples:
        result = classifier.classify(example.text, example.text_pair)
        assert result.exit == (0 if result.uncertainty[0] < threshold else 1)
        exits.add(result.exit)
    assert exits == {0, 1}


def test_answers_are_those_of_the_conformance_vectors(classifier, reader, tiny_classifier, tiny_qa):
    for case in conformance(tiny_classifier).cases:
        assert set(case.outcomes) >= {"exact", "fast"}
        for speed, outcome in case.outcomes.items():
            result = classifier.classify(case.text, case.text_pair, speed)
            assert (result.label, result.exit) == (outcome.label, outcome.exit)
    windows = set()
    for case in conformance(tiny_qa).cases:
        windows.add(len(case.windows))
        for speed, outcome in case.outcomes.items():
            result = reader.answer(case.question, case.passage, speed)
            assert (result.answer, result.start, result.end, result.exit) == (
                outcome.answer,
                outcome.start,
                outcome.end,
                outcome.exit,
            )
            assert result.windows == len(case.windows)
    assert 1 in windows and max(windows) >= 3


def test_several_windows_give_the_best_of_all_spans(reader, tiny_qa):
    """Compared with the definition: every pair of positions of every window, by the PyTorch programs."""
    options = tiny_qa.manifest.qa
    answers = set()
    for example in tiny_qa.examples:
        windows = make_windows(
            reader.bundle.tokenizer,
            example.question,
            example.passage,
            options.window,
            options.stride,
            options.max_question,
            True,
        )
        results = [eager(tiny_qa.programs, window.ids, window.answer_mask) for window in windows]
        for speed, threshold in (("0", 0.0), ("exact", tiny_qa.manifest.speeds["exact"].thresholds[0])):
            for exit in range(2):
                best, null = None, np.inf
                for window, outputs in zip(windows, results):
                    (starts, ends), uncertainty = outputs[exit]
                    starts, ends, allowed = starts.tolist(), ends.tolist(), window.answer_mask.tolist()
                    null = min(null, starts[0] + ends[0])
                    for first in range(1, len(window)):
                        for last in range(first, min(first + options.max_answer, len(window))):
                            score = starts[first] + ends[last]
                            if allowed[first] and allowed[last] and (best is None or score > best[0]):
                                best = (score, uncertainty, window.offsets[first, 0], window.offsets[last, 1])
                if best[1] < threshold:
                    break
            start, end = (-1, -1) if null > best[0] else (best[2], best[3])
            result = reader.answer(example.question, example.passage, speed)
            assert (result.exit, result.start, result.end) == (exit, start, end)
            assert result.answer == ("" if start < 0 else example.passage[start:end])
            assert result.uncertainty[-1] == pytest.approx(best[1], abs=INT8_STEP)
            assert 0 <= result.score <= 1
            answers.add(result.answer)
    assert len(answers) > 5


def test_the_score_is_the_labels_probability(classifier, tiny_classifier):
    result = classifier.classify("bala dume nofi", speed=0)
    expected = torch.softmax(torch.tensor(result.logits), dim=-1)
    assert result.score == pytest.approx(expected.max().item(), abs=1e-6)
    index = int(expected.argmax())
    expected_label = (("low", "middle", "high")[index], "012"[index], index)
    assert (result.label, result.label_value, result.label_index) == expected_label


def test_a_method_is_loaded_when_it_is_first_needed(tiny_classifier):
    runner = Runner(Bundle.open(tiny_classifier.path))
    assert runner.loaded == set()
    runner.classify("bala", speed=1.1)
    assert runner.loaded == {"embed", "segment_0"}
    runner.prewarm()
    assert runner.loaded == {"embed", "segment_0", "segment_1"}


def test_a_text_that_is_too_long_is_cut_and_reported_as_truncated(classifier):
    assert not classifier.classify("ba " * 62, speed=0).truncated
    long = classifier.classify("ba " * 63, speed=0)
    assert long.truncated
    assert long.logits == classifier.classify("ba " * 62, speed=0).logits
    assert classifier.classify("ba " * 30, "du " * 32, speed=0).truncated


def test_calls_that_cannot_be_run_are_refused(classifier, reader):
    for call in (
        lambda: classifier.classify(" \n"),
        lambda: classifier.classify("bala", " "),
        lambda: reader.answer("", "bala"),
        lambda: reader.answer("bala", "\t"),
        lambda: classifier.answer("bala", "dume"),
        lambda: reader.classify("bala"),
        lambda: classifier.classify("bala", speed="quick"),
        lambda: Runner(classifier.bundle, threads=0),
    ):
        with pytest.raises(UserError):
            call()


def test_json_has_the_names_that_scripts_use(classifier, reader, tiny_qa):
    label = classifier.classify("bala").to_json()
    answer = reader.answer(tiny_qa.examples[0].question, tiny_qa.examples[0].passage).to_json()
    common = {"score", "exit", "depth", "uncertainty", "latency_ms"}
    assert set(label) >= common | {"label"}
    assert set(answer) >= common | {"answer", "start", "end"}
    assert json.loads(json.dumps([label, answer])) == [label, answer]
    assert label["latency_ms"] > 0 and answer["latency_ms"] > 0


def test_a_bundle_runs_without_trainer_or_exporter_and_prints_nothing(tiny_classifier):
    code = f"""
import sys
from pipeline.bundle.opening import Bundle
from pipeline.runtime.evaluate import evaluate
from pipeline.runtime.runner import Runner
print(Runner(Bundle.open({str(tiny_classifier.path)!r}), threads=1).classify("bala dume").label)
print([name for name in sys.modules if name.split(".")[0] in ("transformers", "torchao", "coremltools", "quantize")
       or name.startswith(("pipeline.model", "pipeline.distill", "pipeline.export", "executorch.exir"))])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    label, forbidden = done.stdout.splitlines()
    assert label in ("low", "middle", "high")
    assert forbidden == "[]"
    assert done.stderr == ""
