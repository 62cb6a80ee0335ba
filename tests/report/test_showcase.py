"""The few answers at the end of a run show what the bundle read, and say where it is wrong."""

import pytest

from pipeline.bundle.opening import Bundle
from pipeline.data.examples import Answer, ClassificationExample, QAExample
from pipeline.report.results import ShownAnswer
from pipeline.report.showcase import last_words, shortened, showcase
from pipeline.report.terminal import answer_lines
from pipeline.runtime.runner import Runner


def shown(**changes):
    fields = {"text": "a text", "answer": "positive", "label": "positive", "wrong": False}
    return ShownAnswer(**fields | {"depth": 2, "segments": 6, "latency_ms": 1.25} | changes)


def test_a_classifiers_wrong_answer_is_marked(tiny_classifier):
    runner = Runner(Bundle.open(tiny_classifier.path))
    text = "the cat sat"
    right = runner.predict(ClassificationExample(text), "exact").label
    labels = runner.manifest.labels
    wrong = next(label for label in labels if label != right)
    first, second = showcase(
        tiny_classifier.path, [ClassificationExample(text, label=label) for label in (right, wrong)]
    )
    assert not first.wrong and "WRONG" not in "".join(answer_lines(first))
    assert second.wrong and answer_lines(second)[-1].endswith(f"WRONG, the label says: {wrong}")


def test_a_question_has_its_passage_around_the_answer(tiny_qa):
    passage = "the cat sat on the mat and the dog ran"
    answer = Runner(Bundle.open(tiny_qa.path)).predict(QAExample("1", "where", passage), "exact")
    assert answer.answer
    right = Answer(answer.answer, answer.start)
    examples = [QAExample("1", "where", passage, (right,)), QAExample("2", "where", passage, (Answer("zebra", 0),))]
    first, second = showcase(tiny_qa.path, examples)
    assert first.before + first.answer + first.after == passage
    assert answer_lines(first)[1] == f"  {passage[: answer.start]}[{answer.answer}]{passage[answer.end :]}"
    assert not first.wrong and first.note == ""
    assert second.wrong and second.note == "WRONG, the label says: zebra"


def test_a_number_is_shown_beside_its_label_and_not_called_wrong(tiny_regressor):
    (only,) = showcase(tiny_regressor.path, [ClassificationExample("the cat sat", label=1.25)])
    assert not only.wrong and only.note == "the label says: 1.25"


def test_text_with_square_brackets_is_shown_as_it_is(capsys, monkeypatch):
    from pipeline.support.progress import output

    for line in answer_lines(shown(text="[/red] 5 [bold]stars")):
        output().print(line, markup=False, highlight=False)
    assert "[/red] 5 [bold]stars" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["short", "one two three four five six", "x" * 40, "line\n\nbreak  and more words"])
def test_shortened_text_keeps_whole_words_within_its_limit(text):
    words = text.split()
    start, end = shortened(text, 20), last_words(text, 20)
    assert len(start) <= 20 and len(end) <= 20 and "\n" not in start
    if start.endswith(" ...") and len(words) > 1:
        assert text.split()[: len(start.split()) - 1] == start.split()[:-1]
        assert words[-(len(end.split()) - 1) :] == end.split()[1:]
