"""A real model on the demo reviews is far better than a bag of words, and the bound holds for its exits."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from pipeline.bundle.exit_rule import exits_taken
from pipeline.distill.finetune import build_teacher, finetune
from pipeline.distill.student import initialise_student
from pipeline.exits.calibrate import calibrate
from pipeline.exits.predictions import Predictions, predict, run_model
from pipeline.exits.self_distill import self_distill
from pipeline.model.locate import minilm_folder
from pipeline.model.pretrained import load_pretrained
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

# Only ends a hang: no test here depends on how fast the machine is.
pytestmark = pytest.mark.timeout(3600)


def bag_of_words_accuracy(train, dev) -> float:
    """Returns the dev accuracy of naive Bayes with add-one smoothing on words and pairs of neighbouring words."""

    def terms(text):
        words = re.findall(r"[\w']+", text.lower())
        return words + [f"{first} {second}" for first, second in zip(words, words[1:])]

    counts = {label: Counter() for label in {example.label for example in train}}
    for example in train:
        counts[example.label].update(terms(example.text))
    vocabulary = set().union(*counts.values())
    totals = {label: sum(counter.values()) + len(vocabulary) for label, counter in counts.items()}

    def guess(text):
        known = [term for term in terms(text) if term in vocabulary]
        return max(counts, key=lambda label: sum(math.log((counts[label][term] + 1) / totals[label]) for term in known))

    return sum(guess(example.text) == example.label for example in dev) / len(dev)


@pytest.fixture(scope="module")
def predictions(tmp_path_factory) -> Predictions:
    """Returns the predictions of all exits of a fine-tuned MiniLM for the dev reviews."""
    try:
        minilm_folder()
    except UserError:
        pytest.skip("the offline weights are not installed")
    train, dev = get_task("classification").load_demo()
    recipe = Recipe.model_validate(
        {
            "name": "demo",
            "task": "classification",
            "teacher": {
                "token_types": False,
                "training": {"epochs": 2, "learning_rate": 1e-4, "freeze_embeddings": True},
            },
            "exits": {"training": {"epochs": 2, "head_learning_rate": 1e-3}},
        }
    )
    labels = ("negative", "positive")
    scratch = tmp_path_factory.mktemp("demo")
    pretrained = load_pretrained("minilm", "classification")
    tokenizer = pretrained.tokenizer
    teacher = build_teacher(pretrained, recipe, labels)
    items = get_task("classification").items(train, tokenizer, labels, recipe.input_options)
    finetune(teacher, items, recipe, scratch / "teacher.pt")
    model = initialise_student(teacher, None, None, teacher.head_kind)
    self_distill(model, items, recipe, scratch / "exits.pt")
    return predict(run_model, model, dev, tokenizer, labels, recipe)


def test_bag_of_words_is_ten_points_below_the_model(predictions):
    assert bag_of_words_accuracy(*get_task("classification").load_demo()) <= predictions.metrics()["accuracy"] - 0.10


@pytest.mark.parametrize("max_loss", [0.02, 0.04])
def test_the_bound_holds_on_real_predictions(predictions, max_loss):
    """For at most a share `delta` of random calibration splits, the loss of a real model exceeds its bound."""
    rng, delta, rows = np.random.default_rng(0), 0.1, np.arange(len(predictions.score))
    losses, depths = [], []
    for split in range(200):
        drawn = rng.integers(0, len(rows), 500)
        part = Predictions(
            predictions.score[drawn], predictions.exact[drawn], predictions.uncertainty[drawn], predictions.answers
        )
        exits = exits_taken(predictions.uncertainty, calibrate(part, max_loss, delta, "accuracy", split).thresholds)
        losses.append((predictions.score[:, -1] - predictions.score[rows, exits]).mean())
        depths.append((exits + 1).mean())
    assert np.mean(np.array(losses) > max_loss) <= delta
    assert min(depths) < predictions.exits  # otherwise the bound would not have been tested
