"""Examples come back from disk as they were."""

from __future__ import annotations

from pipeline.data.examples import Answer, ClassificationExample, QAExample
from pipeline.data.jsonl import load_examples, save_examples
from pipeline.tasks import get_task


def test_questions_come_back_as_they_were(tmp_path):
    # Unicode line separators belong to the text. They do not end a line of the file.
    examples = [QAExample("1", "Who\u2028?", "A\u0085 B\r\nC", (Answer("B", 3),)), QAExample("2", "x", "y")]
    save_examples(examples, tmp_path / "examples.jsonl")
    assert load_examples(tmp_path / "examples.jsonl", get_task("qa").example_from_json) == examples


def test_texts_come_back_with_the_type_of_their_label(tmp_path):
    examples = [
        ClassificationExample("one \u2028 text", None, "1"),
        ClassificationExample("another", "a second", 1.5),
        ClassificationExample("unlabelled"),
    ]
    save_examples(examples, tmp_path / "examples.jsonl")
    assert load_examples(tmp_path / "examples.jsonl", get_task("classification").example_from_json) == examples
