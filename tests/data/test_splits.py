"""Labels in their order, and a held part that nothing leaks into."""

import pytest

from pipeline.data.examples import ClassificationExample, QAExample
from pipeline.data.labels import LabelRange
from pipeline.data.splits import label_range, label_values, passages, split_off, whole_texts
from pipeline.support.errors import UserError


def split(examples, count, seed):
    """`split_off` with the groups of the examples' task."""
    groups = passages(examples) if isinstance(examples[0], QAExample) else whole_texts(examples)
    return split_off(examples, groups, count, seed)


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


def test_the_range_of_a_regressions_labels():
    assert label_range(_labelled(2.5, -1.0, 4.0)) == LabelRange(minimum=-1, maximum=4)
    for examples, said in (
        (_labelled(3.0, 3.0), "one value only, 3,"),
        (_labelled(1.0, None), "example 2"),
        ([], "no examples"),
    ):
        with pytest.raises(UserError, match=said):
            label_range(examples)


def test_a_split_is_repeatable_and_whole():
    examples = [ClassificationExample(f"text {index}", label=str(index % 2)) for index in range(50)]
    rest, held = split(examples, 10, seed=3)
    assert len(held) == 10 and len(rest) == 40
    assert sorted([*rest, *held], key=examples.index) == examples
    assert (rest, held) == split(examples, 10, seed=3)
    assert held != split(examples, 10, seed=4)[1]
    assert held == sorted(held, key=examples.index)


@pytest.mark.parametrize("seed", range(5))
def test_a_split_leaks_neither_texts_nor_passages(seed):
    texts = [ClassificationExample(f"text {index % 12}", label=str(index)) for index in range(40)]
    rest, held = split(texts, 7, seed)
    assert len(held) == 7 and not {e.text for e in rest} & {e.text for e in held}
    assert len({e.text for e in held}) == 7  # equal texts are no evidence of their own
    questions = [QAExample(str(index), "q", f"passage {index // 5}") for index in range(40)]
    for count, expected in [(1, 5), (5, 5), (12, 15), (35, 35)]:
        rest, held = split(questions, count, seed)
        assert len(held) == expected and len(rest) == 40 - expected
        assert not {e.passage for e in rest} & {e.passage for e in held}


@pytest.mark.parametrize("seed", range(5))
def test_a_held_text_takes_its_fragments_along(seed):
    """As in SST-2, whose training set holds the phrases of its sentences: with the phrases in train, the sentence is no longer unseen."""
    whole = [f"s{n} one two three s{n}a four five s{n}b six seven" for n in range(8)]
    fragments = [" ".join(text.split()[at : at + 6]) for text in whole for at in (0, 1, 4)]
    common = ["one two three", "six seven", "one"]
    everything = [ClassificationExample(text) for text in (*fragments, *common, *whole)]
    rest, held = split(everything, 3, seed)
    assert len(held) == 3
    left = {e.text for e in rest}
    assert set(common) <= left  # too short to belong to one text, and no whole text
    for example in held:
        assert example.text in whole  # not one of its fragments
        assert not any(fragment in example.text for fragment in left if len(fragment.split()) >= 5)
    untouched = [text for text in whole if text in left]
    assert len(untouched) >= 5 and all(f in left for text in untouched for f in fragments if f in text)


def test_a_chain_of_fragments_is_one_group():
    long, middle, short = "a b c d e f g h i", "b c d e f g h", "c d e f g"
    other = [ClassificationExample(f"other text number {n} is a whole one") for n in range(2)]
    rest, held = split([ClassificationExample(text) for text in (short, middle, long)] + other, 2, 0)
    texts = {e.text for e in (*rest, *held)}
    assert texts == {long, *(e.text for e in other)} or texts == {short, middle, long, *(e.text for e in other)}
    assert not ({short, middle} & {e.text for e in held})


def test_pairs_are_kept_apart_by_both_texts():
    pairs = [ClassificationExample("the same first text in all of them", f"second {n % 5}") for n in range(20)]
    rest, held = split(pairs, 2, 1)
    assert len(held) == 2 and not {e.text_pair for e in rest} & {e.text_pair for e in held} and len(rest) == 12


@pytest.mark.parametrize("count", [0, -1, 3, 4])
def test_a_split_that_leaves_nothing(count):
    with pytest.raises(UserError, match="count"):
        split([ClassificationExample(text) for text in "abc"], count, 0)


def test_a_split_of_one_passage():
    with pytest.raises(UserError, match="leaves none"):
        split([QAExample(str(index), "q", "one passage") for index in range(4)], 2, 0)


# --- real data ------------------------------------------------------------------------------------------------------
