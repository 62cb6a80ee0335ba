"""Nothing of the held-out examples is in the rest."""

import random

import pytest

from pipeline.data.examples import ClassificationExample, QAExample
from pipeline.data.splits import passages, split_dev, split_off, whole_texts
from pipeline.support.errors import UserError


def split(examples, count, seed):
    """Calls `split_off` with the groups that the task of the examples has."""
    groups = passages(examples) if isinstance(examples[0], QAExample) else whole_texts(examples)
    return split_off(examples, groups, count, seed)


def test_a_split_is_repeatable_and_loses_nothing():
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
    assert len({e.text for e in held}) == 7  # a repeated text would be counted twice
    questions = [QAExample(str(index), "q", f"passage {index // 5}") for index in range(40)]
    for count, expected in [(1, 5), (5, 5), (12, 15), (35, 35)]:
        rest, held = split(questions, count, seed)
        assert len(held) == expected and len(rest) == 40 - expected
        assert not {e.passage for e in rest} & {e.passage for e in held}


@pytest.mark.parametrize("seed", range(5))
def test_a_held_out_text_takes_its_fragments_along(seed):
    """SST-2's training set has the phrases of its sentences. A sentence is not unseen if its phrases are in train."""
    whole = [f"s{n} one two three s{n}a four five s{n}b six seven" for n in range(8)]
    fragments = [" ".join(text.split()[at : at + 6]) for text in whole for at in (0, 1, 4)]
    common = ["one two three", "six seven", "one"]
    everything = [ClassificationExample(text) for text in (*fragments, *common, *whole)]
    rest, held = split(everything, 3, seed)
    assert len(held) == 3
    left = {e.text for e in rest}
    assert set(common) <= left  # too short to belong to one text
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


def test_pairs_are_grouped_by_both_texts():
    pairs = [ClassificationExample("the same first text in all of them", f"second {n % 5}") for n in range(20)]
    rest, held = split(pairs, 2, 1)
    assert len(held) == 2 and not {e.text_pair for e in rest} & {e.text_pair for e in held} and len(rest) == 12


@pytest.mark.parametrize("count", [0, -1, 3, 4])
def test_a_split_that_leaves_nothing_is_refused(count):
    with pytest.raises(UserError, match="count"):
        split([ClassificationExample(text) for text in "abc"], count, 0)


def test_a_split_of_one_passage_is_refused():
    with pytest.raises(UserError, match="leaves none"):
        split([QAExample(str(index), "q", "one passage") for index in range(4)], 2, 0)


def test_dev_is_split_off_by_text_and_by_label():
    chance = random.Random(0)
    labels = ["rare"] * 20 + ["common"] * 380
    examples = [ClassificationExample(f"Text {number // 2}", label=label) for number, label in enumerate(labels)]
    chance.shuffle(examples)
    inputs = [example.text.casefold() for example in examples]
    strata = [example.label for example in examples]
    train, dev = split_dev(examples, inputs, strata, 0.2, seed=1)
    assert sorted([*train, *dev], key=examples.index) == sorted(examples, key=examples.index)
    assert not {example.text for example in train} & {example.text for example in dev}
    assert sum(example.label == "rare" for example in dev) == 4 and len(dev) == 80
    assert (train, dev) == split_dev(examples, inputs, strata, 0.2, seed=1)
    assert dev != split_dev(examples, inputs, strata, 0.2, seed=2)[1]


def test_a_label_with_one_text_stays_in_train():
    examples = [ClassificationExample(text, label=label) for text, label in (("a", "1"), ("b", "1"), ("c", "2"))]
    train, dev = split_dev(examples, "abc", ["1", "1", "2"], 0.5, seed=0)
    assert len(dev) == 1 and {example.label for example in train} == {"1", "2"}
    with pytest.raises(UserError, match="data.dev: cannot hold out a part of 2 examples"):
        split_dev(examples[1:], "bc", ["1", "2"], 0.5, seed=0)
