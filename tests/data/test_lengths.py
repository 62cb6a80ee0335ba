"""Counted lengths are those of the inputs that a model gets."""

from pipeline.data.examples import Answer, ClassificationExample, QAExample
from pipeline.data.lengths import measure_lengths
from pipeline.data.tokenizer import WordPieceTokenizer

TOKENIZER = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"])


def test_texts_and_pairs_count_their_special_tokens():
    examples = [ClassificationExample("a b a", "b"), ClassificationExample("a")]
    assert measure_lengths(examples, TOKENIZER).inputs.tolist() == [3, 7]


def test_questions_count_with_their_whole_passage():
    passage = "a b " * 200
    found = measure_lengths([QAExample("1", "a b", passage, (Answer("b a", 2),))], TOKENIZER)
    assert (found.inputs.tolist(), found.question, found.answer) == ([405], 2, 2)
