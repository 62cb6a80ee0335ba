"""Labels in their order, and a held part that nothing leaks into."""

import pytest

from pipeline.data.examples import ClassificationExample, QAExample
from pipeline.data.splits import label_values, split_off
from pipeline.errors import UserError


def _labelled(*labels):
    return [ClassificationExample("text", label=label) for label in labels]


def test_labels_are_sorted_as_numbers_or_names():
    assert label_values(_labelled("10", "9", "-1", "9")) == ("-1", "9", "10")
    assert label_values(_labelled("b", "10", "9")) == ("10", "9", "b")


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        (_labelled("a", "a"), "one label only"),
        (_labelled("a", None, "b"), "example 2"),
        ([], "no examples"),
        ([QAExample("1", "q", "p")], "qa"),
    ],
)
def test_labels_that_no_classifier_can_learn(examples, said):
    with pytest.raises(UserError, match=said):
        label_values(examples)


def test_a_split_is_repeatable_and_whole():
    examples = [ClassificationExample(f"text {index}", label=str(index % 2)) for index in range(50)]
    rest, held = split_off(examples, 10, seed=3)
    assert len(held) == 10 and len(rest) == 40
    assert sorted([*rest, *held], key=examples.index) == examples
    assert (rest, held) == split_off(examples, 10, seed=3)
    assert held != split_off(examples, 10, seed=4)[1]
    assert held == sorted(held, key=examples.index)


@pytest.mark.parametrize("seed", range(5))
def test_a_split_leaks_neither_texts_nor_passages(seed):
    texts = [ClassificationExample(f"text {index % 12}", label=str(index)) for index in range(40)]
    rest, held = split_off(texts, 7, seed)
    assert len(held) >= 7 and not {e.text for e in rest} & {e.text for e in held}
    questions = [QAExample(str(index), "q", f"passage {index // 5}") for index in range(40)]
    for count, expected in [(1, 5), (5, 5), (12, 15), (35, 35)]:
        rest, held = split_off(questions, count, seed)
        assert len(held) == expected and len(rest) == 40 - expected
        assert not {e.passage for e in rest} & {e.passage for e in held}


@pytest.mark.parametrize("count", [0, -1, 3, 4])
def test_a_split_that_leaves_nothing(count):
    with pytest.raises(UserError, match="count"):
        split_off([ClassificationExample(text) for text in "abc"], count, 0)


def test_a_split_of_one_passage():
    with pytest.raises(UserError, match="leaves none"):
        split_off([QAExample(str(index), "q", "one passage") for index in range(4)], 2, 0)


# --- real data ------------------------------------------------------------------------------------------------------
