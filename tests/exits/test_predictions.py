"""Predictions: every exit's answers and uncertainties equal the runner's, and the measures use the same logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.bundle.opening import Bundle
from pipeline.data.items import Item
from pipeline.data.regression_metrics import regression_metrics
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.exits.predictions import Predictions, predict, run_model, run_programs
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.runtime.runner import Runner
from pipeline.tasks.measures import LABEL_MEASURES, SPAN_MEASURES, TOKEN_MEASURES
from pipeline.tasks.qa import QuestionAnswering

IN_PROGRAM = ("entropy", "max_probability", "margin")


def make_recipe(task: str, measure: str = "entropy") -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "task": task,
            "data": {"max_length": 64},
            "qa": {"window": 48, "stride": 12, "max_question": 16, "max_answer": 8, "allow_no_answer": True},
            "export": {"max_length": 64},
            "exits": {"uncertainty": measure},
        }
    )


def make_model(task: str, vocabulary: int, measure: str) -> ExitModel:
    torch.manual_seed(2)
    config = EncoderConfig(
        vocab_size=vocabulary, hidden_size=64, layers=3, heads=4, intermediate_size=128, max_positions=64
    )
    model = ExitModel(task, config, 3, {"classification": "pooled", "qa": "attention"}[task], (1, 2, 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    model.uncertainty, model.temperatures = measure, [1.0, 1.5, 0.7]
    return model


@pytest.fixture(params=["tiny_classifier", "tiny_qa"])
def tiny(request):
    return request.getfixturevalue(request.param)


def predict_tiny(tiny, measure: str, run=run_model) -> Predictions:
    """Predicts with a new model on the tiny bundle's examples."""
    task, tokenizer = tiny.manifest.task, WordPieceTokenizer.from_vocab(tiny.path / "vocab.txt", True)
    model = make_model(task, tokenizer.vocab_size, measure)
    if run is run_programs:
        model = Programs.of(model)
    return predict(run, model, tiny.examples, tokenizer, tiny.manifest.label_values, make_recipe(task, measure))


@pytest.mark.parametrize("run", [run_model, run_programs])
@pytest.mark.parametrize("measure", IN_PROGRAM)
def test_the_recipes_measure_is_among_all_of_them(tiny, measure, run):
    """The program computes it with torch, `measures` in numpy from the logits; both apply the temperatures."""
    predictions = predict_tiny(tiny, measure, run)
    names = {
        "patience",
        "agreement",
        *(LABEL_MEASURES if tiny.manifest.task == "classification" else {**TOKEN_MEASURES, **SPAN_MEASURES}),
    }
    assert set(predictions.measures) == names
    assert all(
        values.shape == predictions.score.shape == (len(tiny.examples), 3) for values in predictions.measures.values()
    )
    np.testing.assert_allclose(predictions.uncertainty, predictions.measures[measure], atol=1e-5)
    others = names - {measure, "agreement"}  # agreement equals the entropy if no two exits agree
    assert not any(np.allclose(predictions.uncertainty, predictions.measures[name], atol=1e-3) for name in others)


def test_patience_counts_repeated_answers(tiny):
    predictions = predict_tiny(tiny, "patience")
    repeated = [[1 + (exit > 0 and row[exit] == row[exit - 1]) for exit in (0, 1)] for row in predictions.answers]
    assert np.array_equal(predictions.uncertainty[:, :2], 1 / np.array(repeated))
    assert np.array_equal(predictions.uncertainty, predictions.measures["patience"])
    assert np.array_equal(predictions.measures["entropy"], predict_tiny(tiny, "entropy").measures["entropy"])


def test_agreement_is_the_programs_uncertainty_times_patience(tiny):
    predictions = predict_tiny(tiny, "agreement")
    np.testing.assert_allclose(
        predictions.uncertainty, predict_tiny(tiny, "entropy").uncertainty * predictions.measures["patience"]
    )
    np.testing.assert_allclose(predictions.uncertainty, predictions.measures["agreement"], atol=1e-5)


def test_predictions_equal_the_runners(tiny):
    """Compares the bundle's programs in PyTorch, in batches, with ExecuTorch, one input at a time."""
    task, tokenizer = tiny.manifest.task, WordPieceTokenizer.from_vocab(tiny.path / "vocab.txt", True)
    predictions = predict(
        run_programs, tiny.programs, tiny.examples, tokenizer, tiny.manifest.label_values, make_recipe(task)
    )
    runner = Runner(Bundle.open(tiny.path))
    results = [
        runner.answer(example.question, example.passage, 0)
        if task == "qa"
        else runner.classify(example.text, example.text_pair, 0)
        for example in tiny.examples
    ]
    np.testing.assert_allclose(predictions.uncertainty, [result.uncertainty for result in results], atol=0.05)
    answers = [result.answer if task == "qa" else result.label_index for result in results]
    assert sum(row[-1] == answer for row, answer in zip(predictions.answers, answers)) >= len(answers) - 1


def test_questions_are_run_in_chunks_and_returned_in_order(tiny_qa, monkeypatch):
    whole, sizes, steps = predict_tiny(tiny_qa, "margin"), [], []

    def run(model, items: list[Item], on_step):
        sizes.append(len(items))
        return run_model(model, items, on_step)

    monkeypatch.setattr(QuestionAnswering, "examples_in_memory", 3)
    tokenizer = WordPieceTokenizer.from_vocab(tiny_qa.path / "vocab.txt", True)
    model, recipe = make_model("qa", tokenizer.vocab_size, "margin"), make_recipe("qa", "margin")
    parts = predict(
        run, model, tiny_qa.examples, tokenizer, (), recipe, lambda what, done, total: steps.append((done, total))
    )
    assert len(sizes) == 4 and sizes[-1] <= 1 < sizes[0]  # ten questions in chunks of three, the longest first
    assert steps == sorted(steps) and steps[-1] == (sum(sizes), sum(sizes))
    assert parts.answers == whole.answers
    np.testing.assert_allclose(parts.uncertainty, whole.uncertainty, atol=1e-5)
    for name, values in whole.measures.items():
        np.testing.assert_allclose(parts.measures[name], values, atol=1e-5)


def test_a_regressions_predictions_equal_the_runners(tiny_regressor):
    tokenizer = WordPieceTokenizer.from_vocab(tiny_regressor.path / "vocab.txt", True)
    label_range, recipe = tiny_regressor.manifest.label_range, make_recipe("regression", "change")
    predictions = predict(
        run_programs, tiny_regressor.programs, tiny_regressor.examples, tokenizer, label_range, recipe
    )
    values, labels = np.array(predictions.answers), np.array([example.label for example in tiny_regressor.examples])
    assert predictions.task == "regression" and predictions.exact is None and values.shape == (24, 4)
    np.testing.assert_allclose(predictions.score, 1 - np.clip(np.abs(values - labels[:, None]) / 8, 0, 1))
    assert predictions.metrics(1) == regression_metrics(values[:, 1], labels)
    runner = Runner(Bundle.open(tiny_regressor.path))
    results = [runner.estimate(example.text, example.text_pair, 0) for example in tiny_regressor.examples]
    np.testing.assert_allclose(predictions.uncertainty, [result.uncertainty for result in results], atol=0.03)
    np.testing.assert_allclose(values[:, -1], [result.value for result in results], atol=8 * 0.02)


def test_a_regressions_model_and_programs_predict_the_same(tiny_regressor):
    """The programs are not quantized here, and batches are padded."""
    tokenizer = WordPieceTokenizer.from_vocab(tiny_regressor.path / "vocab.txt", True)
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, layers=3, heads=4, intermediate_size=128, max_positions=64
    )
    model = ExitModel("regression", config, 1, "fastbert", (1, 2, 3)).eval()
    label_range, recipe = tiny_regressor.manifest.label_range, make_recipe("regression", "change")
    arguments = (tiny_regressor.examples, tokenizer, label_range, recipe)
    by_model = predict(run_model, model, *arguments)
    by_programs = predict(run_programs, Programs.of(model), *arguments)
    np.testing.assert_allclose(by_model.answers, by_programs.answers, atol=1e-4)
    np.testing.assert_allclose(by_model.uncertainty, by_programs.uncertainty, atol=1e-4)
