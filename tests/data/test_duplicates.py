"""Equal inputs are found whatever their case and spaces, and so are labels that contradict each other."""

from pipeline.data.duplicates import Repeats, count_overlap, count_repeats, normalise


def test_case_and_spaces_make_no_other_text():
    assert normalise("  Block\tmy CARD\n") == normalise("block my card") != normalise("block my cards")


def test_repeats_and_contradictions_are_counted():
    assert count_repeats(["a", "b", "a", "a", "b"], ["1", "1", "1", "2", "1"]) == Repeats(3, 1)
    assert count_repeats(["a", "a"], [None, None]) == Repeats(1, 0)  # two ratings may differ


def test_overlap_counts_examples_of_dev():
    assert count_overlap(["a", "b"], ["b", "b", "c"]) == 2
