"""The embedded reviews need a model: a pretrained one, fine-tuned as the demo recipe does it, is far above a bag of words."""

import math
import re
from collections import Counter

import pytest

from pipeline.data.demo import load_demo
from pipeline.data.items import make_items
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.distill.finetune import build_teacher, finetune
from pipeline.errors import UserError
from pipeline.exits.predictions import predict, run_model
from pipeline.model.checkpoint import load_pretrained, minilm_folder
from pipeline.recipe import Recipe


def bag_of_words_accuracy(train, dev) -> float:
    """Multinomial naive Bayes over words and pairs of neighbouring words, add-one smoothed."""

    def grams(text):
        words = re.findall(r"[\w']+", text.lower())
        return words + [f"{a} {b}" for a, b in zip(words, words[1:])]

    counts = {label: Counter() for label in {example.label for example in train}}
    for example in train:
        counts[example.label].update(grams(example.text))
    vocabulary = set().union(*counts.values())
    totals = {label: sum(counter.values()) + len(vocabulary) for label, counter in counts.items()}

    def guess(text):
        known = [gram for gram in grams(text) if gram in vocabulary]
        return max(counts, key=lambda label: sum(math.log((counts[label][gram] + 1) / totals[label]) for gram in known))

    return sum(guess(example.text) == example.label for example in dev) / len(dev)


@pytest.mark.timeout(900)
def test_bag_of_words_is_ten_points_below_the_model(tmp_path):
    try:
        minilm_folder()
    except UserError:
        pytest.skip("the offline weights are not installed")
    train, dev = load_demo("classification")
    recipe = Recipe.model_validate(
        {
            "name": "demo",
            "task": "classification",
            "teacher": {
                "token_types": False,
                "training": {"epochs": 2, "learning_rate": 1e-4, "freeze_embeddings": True},
            },
        }
    )
    labels = ("negative", "positive")
    pretrained = load_pretrained("minilm", "classification")
    tokenizer = WordPieceTokenizer.from_vocab(pretrained.vocab, lowercase=pretrained.lowercase)
    teacher = build_teacher(pretrained, recipe, len(labels))
    finetune(teacher, make_items(train, tokenizer, labels, recipe), recipe, tmp_path / "checkpoint.pt")
    accuracy = predict(run_model, teacher, dev, tokenizer, labels, recipe).metrics()["accuracy"]
    assert bag_of_words_accuracy(train, dev) <= accuracy - 0.10
