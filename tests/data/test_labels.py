"""Labels have a fixed order, and labels that nothing can learn are refused."""

import pytest

from pipeline.data.examples import ClassificationExample, QAExample
from pipeline.data.labels import LabelRange, label_range, label_values
from pipeline.support.errors import UserError


def _labelled(*labels):
    return [ClassificationExample("text", label=label) for label in labels]


def test_labels_are_sorted_as_numbers_or_names():
    assert label_values(_labelled("10", "9", "-1", "9")) == ("-1", "9", "10")
    assert label_values(_labelled("b", "10", "9")) == ("10", "9", "b")


@pytest.mark.parametrize(
    ("examples", "problem"),
    [
        (_labelled("a", "a"), "one label only"),
        (_labelled("a", None, "b"), "example 2"),
        ([], "no examples"),
        ([QAExample("1", "q", "p")], "qa"),
    ],
)
def test_labels_that_no_classifier_can_learn_are_refused(examples, problem):
    with pytest.raises(UserError, match=problem):
        label_values(examples)


def test_the_range_of_the_labels_of_a_regression():
    assert label_range(_labelled(2.5, -1.0, 4.0)) == LabelRange(minimum=-1, maximum=4)
    for examples, problem in (
        (_labelled(3.0, 3.0), "one value only, 3,"),
        (_labelled(1.0, None), "example 2"),
        ([], "no examples"),
    ):
        with pytest.raises(UserError, match=problem):
            label_range(examples)
