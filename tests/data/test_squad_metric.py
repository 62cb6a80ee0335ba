"""The metric follows the official evaluation script; the expected values are worked out by hand."""

import importlib
import random

import pytest

from pipeline.data.squad_metric import exact_match, f1, normalize_answer


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Cat, sat.", "cat sat"),
        ("  an   apple\ta day\n", "apple day"),
        ("theatre anaconda", "theatre anaconda"),
        ("U.S.A.", "usa"),
        ("the-end", "theend"),  # punctuation is removed first, so "the" is no word of its own
        ("24–10", "24–10"),  # an en dash is not ASCII punctuation
        ("A", ""),
        ("“The”", "“ ”"),
        ("ÉCOLE", "école"),
    ],
)
def test_an_answer_is_normalised(text, normalised):
    assert normalize_answer(text) == normalised


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "token_f1"),
    [
        ("Denver Broncos", ["Denver Broncos"], 1, 1),
        ("the denver broncos.", ["Denver Broncos"], 1, 1),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),  # precision 1, recall 1/2
        ("Broncos", ["Denver Broncos", "Broncos"], 1, 1),
        ("in New York City", ["New York", "York"], 0, 2 / 3),  # precision 2/4, recall 1
        ("to be or not to be", ["to be"], 0, 1 / 2),  # repeated words count as often as both have them: 2/6, 2/2
        ("Carolina", ["Denver"], 0, 0),
        ("", [], 1, 1),
        ("the", [], 1, 1),
        ("Denver", [], 0, 0),
        ("", ["Denver"], 0, 0),
        ("", ["", "Denver"], 0, 0),  # an empty answer beside a real one does not count
        ("", [""], 1, 1),
        ("", ["the"], 1, 1),
    ],
)
def test_scores_are_those_of_the_script(prediction, answers, exact, token_f1):
    assert exact_match(prediction, answers) == exact
    assert f1(prediction, answers) == pytest.approx(token_f1)


def test_one_text_is_not_a_list_of_answers():
    with pytest.raises(TypeError):
        exact_match("x", "x")


def test_agrees_with_transformers_where_it_still_has_the_metric():
    try:
        official = importlib.import_module("transformers.data.metrics.squad_metrics")
    except ImportError:
        pytest.skip("this transformers has no squad_metrics")
    generator = random.Random(0)
    words = ["the", "a", "an", "The", "cat,", "cat", "sat", "U.S.", "–", "--", "", "on", "Mat!"]
    for _ in range(500):
        prediction, answer = (" ".join(generator.choices(words, k=generator.randint(0, 5))) for _ in range(2))
        assert exact_match(prediction, [answer]) == official.compute_exact(answer, prediction)
        assert f1(prediction, [answer]) == pytest.approx(official.compute_f1(answer, prediction))
