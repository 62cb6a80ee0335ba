"""Every form of data file is recognised by its content, and every fault is one line that says where it is."""

import builtins
import json
import os
import sys
import types
from pathlib import Path

import pytest

from pipeline.data.examples import Answer, ClassificationExample, QAExample
from pipeline.data.labels import label_values
from pipeline.support.errors import UserError
from pipeline.tasks.reading import read_examples

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"

PASSAGE = "Ada saw Zoë. Then Ada left."
TWO = [ClassificationExample("good , really", label="1"), ClassificationExample('bad "film', label="0")]


def _write(folder: Path, content, name: str = "data.unknown") -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
    return path


def _squad(answers=None, **changes):
    question = {"id": "q7", "question": "Who left?", "answers": answers or [{"text": "Ada", "answer_start": 18}]}
    question.update(changes)
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": PASSAGE, "qas": [question]}]}]}


def _fault(path, task="classification", **columns) -> str:
    """Returns the error that reading a file raises: one line with the path."""
    with pytest.raises(UserError) as caught:
        read_examples(path, task, **columns)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# What can be read.


@pytest.mark.parametrize(
    "content",
    [
        'sentence\tlabel\ngood , really\t1\nbad "film\t0\n',
        '\ufeffsentence\tlabel\r\ngood , really\t1\r\n\r\nbad "film\t0',
        'text,label\n"good , really",1\n"bad ""film",0\n',
        'text;label\ngood , really;1\n"bad ""film";0\n',
        '{"text": "good , really", "label": 1}\n\n{"text": "bad \\"film", "label": 0.0}\n',
        '[{"text": "good , really", "label": "1"},\n {"text": "bad \\"film", "label": " 0 "}]',
        '{"data": [{"review": "good , really", "class": 1}, {"review": "bad \\"film", "class": 0}]}',
        '{\n  "data": [\n{"text": "good , really", "category": 1}, {"text": "bad \\"film", "category": 0}]}',
    ],
)
def test_a_form_is_recognised_by_its_content(tmp_path, content):
    assert read_examples(_write(tmp_path, content), "classification") == TWO


def test_parquet_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.csv"  # the name does not matter
    parquet.write_table(pyarrow.table({"text": [e.text for e in TWO], "label": [1, 0]}), path)
    assert read_examples(path, "classification") == TWO
    rows = {
        "id": ["q7"], "question": ["Who left?"], "context": [PASSAGE],
        "answers": [{"text": ["Ada"], "answer_start": [18]}],
    }  # fmt: skip
    parquet.write_table(pyarrow.table(rows), path)
    assert read_examples(path, "qa") == [QAExample("q7", "Who left?", PASSAGE, (Answer("Ada", 18),))]


def test_one_json_line_and_one_csv_column_are_read(tmp_path):
    assert read_examples(_write(tmp_path, '{"text": "good", "label": "x"}'), "classification")[0].label == "x"
    assert read_examples(_write(tmp_path, "text\nhello\n"), "classification") == [ClassificationExample("hello")]


def test_csv_cells_may_span_lines_and_have_any_length(tmp_path):
    long = "word " * 40_000
    path = _write(tmp_path, f'text,label\n"one\ntwo",1\n"{long}",0\nthree\n')
    assert [e.text for e in read_examples(path, "classification", limit=2)] == ["one\ntwo", long]
    assert "line 5" in _fault(path)  # the third record starts on the fifth line


def test_pairs_and_named_columns_are_read(tmp_path):
    path = _write(tmp_path, "index\tsentence1\tsentence2\tgold\n0\tone\ttwo\tyes\n")
    assert read_examples(path, "classification", label="gold") == [ClassificationExample("one", "two", "yes")]
    assert read_examples(path, "classification", text="sentence2", text_pair="", label="gold") == [
        ClassificationExample("two", None, "yes")
    ]


def test_unlabelled_texts_are_read(tmp_path):
    path = _write(tmp_path, "index\tsentence\n0\tone\n")
    assert read_examples(path, "classification") == [ClassificationExample("one")]
    assert read_examples(_write(tmp_path, [{"text": "one", "label": None}]), "classification")[0].label is None
    assert read_examples(_write(tmp_path, [{"text": "one", "stars": 4}]), "classification", label="")[0].label is None


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    path = _write(tmp_path, "text\tlabel\none\u2028two\x85three\t1\n")
    assert read_examples(path, "classification")[0].text == "one\u2028two\x85three"


def test_squad_is_read(tmp_path):
    expected = [QAExample("q7", "Who left?", PASSAGE, (Answer("Ada", 18),))]
    for indent in (None, 1):
        assert read_examples(_write(tmp_path, json.dumps(_squad(), indent=indent)), "qa") == expected
    impossible = _squad(is_impossible=True, plausible_answers=[{"text": "Ada", "answer_start": 0}])
    assert read_examples(_write(tmp_path, impossible), "qa")[0].answers == ()
    assert read_examples(_write(tmp_path, _squad(is_impossible=True, answers=[])), "qa")[0].answers == ()


@pytest.mark.parametrize(
    "answers",
    [{"text": ["Ada"], "answer_start": [18]}, [{"text": "Ada", "answer_start": 18}]],
)
def test_rows_of_questions_are_read(tmp_path, answers):
    row = {"id": 7, "question": "Who left?", "passage": PASSAGE, "answers": answers}
    expected = [QAExample("7", "Who left?", PASSAGE, (Answer("Ada", 18),))]
    assert read_examples(_write(tmp_path, [row]), "qa") == expected
    assert read_examples(_write(tmp_path, json.dumps(row) + "\n" + json.dumps(row)), "qa") == expected * 2
    tsv = f"id\tquestion\tpassage\tanswers\n7\tWho left?\t{PASSAGE}\t{json.dumps(answers)}\n"
    assert read_examples(_write(tmp_path, tsv), "qa") == expected
    none = dict(row, answers={"text": [], "answer_start": []})
    assert read_examples(_write(tmp_path, [none]), "qa")[0].answers == ()


@pytest.mark.parametrize(("given", "nearest"), [(20, 18), (3, 0), (0, 0), (-1, 0), (999, 18), (18, 18), (12, 18)])
def test_a_wrong_start_moves_to_the_nearest_occurrence(tmp_path, given, nearest):
    path = _write(tmp_path, _squad([{"text": "Ada", "answer_start": given}]))
    assert read_examples(path, "qa")[0].answers == (Answer("Ada", nearest),)


def test_nothing_is_read_beyond_the_limit(tmp_path):
    path = _write(tmp_path, '{"text": "one", "label": 1}\n{"text": "two", "label": 0}\n{broken\n')
    assert len(read_examples(path, "classification", limit=2)) == 2
    with pytest.raises(UserError, match="limit"):
        read_examples(path, "classification", limit=0)


# What is refused.


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in _fault(tmp_path / "train.tsv")
    assert "no such file" in _fault("nowhere/train.tsv")


def test_a_folder_is_refused(tmp_path):
    assert "folder" in _fault(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_read_permission_is_refused(tmp_path):
    path = _write(tmp_path, "text\tlabel\n")
    path.chmod(0)
    assert "permissions" in _fault(path)


def test_a_permission_error_of_the_system_is_reported(tmp_path, monkeypatch):
    path = _write(tmp_path, "text\tlabel\n")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "Permission denied" in _fault(path)


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    assert "empty" in _fault(_write(tmp_path, content))


@pytest.mark.parametrize("content", ["text\tlabel\n", "text,label\n", "[]", '{"data": []}'])
def test_a_file_without_examples_is_refused(tmp_path, content):
    fault = _fault(_write(tmp_path, content), "qa" if "data" in content else "classification")
    assert "no examples" in fault


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    fault = _fault(_write(tmp_path, b"text\tlabel\ncaf\xe9\t1\n"))
    assert "line 2" in fault and "byte 14 (0xe9)" in fault
    fault = _fault(_write(tmp_path, b"\xef\xbb\xbftext\tlabel\ncaf\xe9\t1\n"))
    assert "line 2" in fault and "byte 17 (0xe9)" in fault
    assert "gzip" in _fault(_write(tmp_path, b"\x1f\x8b\x08\x00"))
    assert "UTF-16" in _fault(_write(tmp_path, "text\tlabel\n".encode("utf-16")))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"text": "one", "label": 1}\n{"text": "two", "label": }\n', 2),
        ('{"text": "one" "label": 1}\n{"text": "two", "label": 1}\n', 1),
        ('{"text": "one", "label": 1}\n\n["two"]\n', 3),
        ('[{"text": "one", "label": 1},\n {"text": "two"\n', 3),
        ('{"version": "1.1",\n "data": [{]}\n', 2),
        ('{"version": "1.1", "data": [', 1),
        ("[" * 100_000, 1),
    ],
)
def test_broken_json_is_refused(tmp_path, content, line):
    assert f"line {line}" in _fault(_write(tmp_path, content))


@pytest.mark.parametrize("content", ['text,label\none,1\n"two,0\n', 'text,label\none,1\n"two"x,0\n'])
def test_broken_csv_is_refused(tmp_path, content):
    fault = _fault(_write(tmp_path, content))
    assert "line 3" in fault and "broken CSV" in fault


def test_broken_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    assert "broken Parquet" in _fault(_write(tmp_path, b"PAR1" + bytes(40)))


def test_parquet_without_pyarrow_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in _fault(_write(tmp_path, b"PAR1"))


@pytest.mark.parametrize("row", ["one", "one\t1\textra"])
def test_a_row_with_more_or_fewer_cells_than_the_header_is_refused(tmp_path, row):
    assert "line 3" in _fault(_write(tmp_path, f"text\tlabel\nzero\t0\n{row}\n"))


def test_missing_columns_are_listed_with_the_field_to_set(tmp_path):
    path = _write(tmp_path, [{"body": "one", "stars": 1}])
    with pytest.raises(UserError, match="2 problems") as caught:
        read_examples(path, "classification")
    text, label = (str(error) for error in caught.value.errors)
    assert "data.text" in text and "'body', 'stars'" in text and "data.label" in label
    fault = _fault(path, text="body")
    assert "data.label" in fault and "'stars'" in fault
    for field, columns in [
        ("data.text", {"text": "nope", "label": "stars"}),
        ("data.text_pair", {"text": "body", "text_pair": "nope", "label": "stars"}),
        ("data.label", {"text": "body", "label": "nope"}),
    ]:
        fault = _fault(path, **columns)
        assert "'nope'" in fault and field in fault and "'body', 'stars'" in fault
    assert "more than once" in _fault(_write(tmp_path, "text\tlabel\ttext\na\t1\tb\n"))


def test_missing_columns_are_suggested_from_their_content(tmp_path):
    rows = [{"when": f"2020-01-{n:02}", "body": f"a long message number {n}", "stars": "AB"[n % 2]} for n in range(30)]
    path = _write(tmp_path, rows)
    with pytest.raises(UserError) as caught:
        read_examples(path, "classification")
    settings = [setting for error in caught.value.errors for setting in error.settings]
    assert settings == ["data.text=body", "data.label=stars"]
    assert _fault(path, text="bodi", label="stars").endswith("(--set data.text=body)")
    assert len(read_examples(path, "classification", text="body", label="stars")) == 30


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("text\tlabel\none\t1\n  \t1\n", "line 3, text"),
        ("text,label\none,1\n,1\n", "line 3, text"),
        ('{"text": "one", "label": 1}\n{"label": 1}\n', "line 2, text"),
        ('{"text": "one", "label": 1}\n{"text": null, "label": 1}\n', "line 2, text"),
        ('{"text": "one", "label": 1}\n{"text": 5, "label": 1}\n', "line 2, text"),
        ('[{"text": "one", "text_pair": "two", "label": 1}, {"text": "a", "text_pair": "", "label": 1}]',
         "row 2, text_pair"),
        ("text\tlabel\none\t1\ntwo\t \n", "line 3, label"),
        ('{"text": "one", "label": 1}\n{"text": "two"}\n', "line 2, label"),
        ('{"text": "one", "label": 1}\n{"text": "two", "label": 3.8}\n', "line 2, label"),
        ('{"text": "one", "label": 1}\n{"text": "two", "label": NaN}\n', "line 2, label"),
        ('{"text": "one", "label": 1}\n{"text": "two", "label": [1]}\n', "line 2, label"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path, content, place):
    assert place in _fault(_write(tmp_path, content))


def test_an_answer_that_its_passage_does_not_contain_is_refused(tmp_path):
    fault = _fault(_write(tmp_path, _squad([{"text": "Bob", "answer_start": 0}])), "qa")
    assert "q7" in fault and "'Bob'" in fault
    row = {"id": "q9", "question": "Who?", "context": PASSAGE, "answers": {"text": ["Bob"], "answer_start": [0]}}
    fault = _fault(_write(tmp_path, [row]), "qa")
    assert "q9" in fault and "row 1" in fault


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"data": [{"paragraphs": [{"qas": []}]}]}, 'data[0].paragraphs[0]: there is no "context"'),
        ({"data": [{"paragraphs": {}}]}, "data[0].paragraphs: an object where a list belongs"),
        ({"data": [{"paragraphs": []}, 3]}, "data[1]"),
        (_squad(question=" "), "data[0].paragraphs[0].qas[0].question: the text is empty"),
        (_squad(answers=[{"text": "Ada"}]), "answers[0] (question q7): answer_start is nothing"),
        (_squad(answers=[{"text": "", "answer_start": 0}]), "the answer has no text"),
        (_squad(answers=["Ada"]), "answers[0]"),
        (_squad(answers={"text": "Ada"}), "qas[0].answers: an object where a list belongs"),
    ],
)
def test_broken_squad_is_refused(tmp_path, document, place):
    assert place in _fault(_write(tmp_path, document), "qa")


def test_a_squad_question_without_answers_does_not_count_as_unanswerable(tmp_path):
    document = _squad()
    del document["data"][0]["paragraphs"][0]["qas"][0]["answers"]
    assert 'no "answers"' in _fault(_write(tmp_path, document), "qa")


def test_broken_rows_of_questions_are_refused(tmp_path):
    row = {"question": "Who?", "context": PASSAGE, "answers": {"text": ["Ada"], "answer_start": []}}
    assert "row 1, answers" in _fault(_write(tmp_path, [row]), "qa")
    assert "no column answers" in _fault(_write(tmp_path, [{"question": "Who?", "context": PASSAGE}]), "qa")
    assert "row 1, context" in _fault(_write(tmp_path, [dict(row, context=" ")]), "qa")


def test_data_of_the_other_task_are_refused(tmp_path):
    assert 'task to "qa"' in _fault(_write(tmp_path, _squad()))
    assert "no column question" in _fault(_write(tmp_path, [{"text": "one", "label": 1}]), "qa")


# The hub.


def _hub(monkeypatch, load_dataset):
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hub_names_are_loaded(monkeypatch):
    rows = [{"sentence": "one", "label": 1, "idx": 0}]
    requests = []

    def load_dataset(name, config, split):
        requests.append((name, config, split))
        return rows if split else {"train": rows, "test": rows}

    _hub(monkeypatch, load_dataset)
    expected = [ClassificationExample("one", label="1")]
    assert read_examples("stanfordnlp/sst2:train", "classification") == expected
    assert read_examples("nyu-mll/glue/sst2:train[:5%]", "classification") == expected
    assert requests == [("stanfordnlp/sst2", None, "train"), ("nyu-mll/glue", "sst2", "train[:5%]")]
    fault = _fault("stanfordnlp/sst2", "classification")
    assert "train, test" in fault and "stanfordnlp/sst2:train" in fault


def test_an_unreachable_hub_is_reported(monkeypatch):
    def load_dataset(name, config, split):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    _hub(monkeypatch, load_dataset)
    fault = _fault("stanfordnlp/sst2:train")
    assert "no such file" in fault and "not reachable" in fault and "and more" not in fault


def test_a_split_that_the_hub_does_not_have_is_reported(monkeypatch):
    def load_dataset(name, config, split):
        raise ValueError("Unknown split \"x\". Should be one of ['train'].")

    _hub(monkeypatch, load_dataset)
    assert "Unknown split" in _fault("stanfordnlp/sst2:x")


def test_a_path_is_never_looked_up_on_the_hub(tmp_path, monkeypatch):
    def load_dataset(name, config, split):
        raise AssertionError("asked the hub")

    _hub(monkeypatch, load_dataset)
    for path in ("data/train.tsv", "../data/train", "/data/train", "train", "a/b/c/d", "data/x.jsonl"):
        assert "no such file" in _fault(path)
    with pytest.raises(UserError, match="no such file"):
        read_examples("./data/train", "classification")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").write_text("text\tlabel\none\t1\n")
    assert len(read_examples("data/train", "classification")) == 1


def test_a_text_file_needs_neither_pyarrow_nor_datasets(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        assert name.split(".")[0] not in ("pyarrow", "datasets", "torch", "transformers")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    read_examples(_write(tmp_path, "text\tlabel\none\t1\n"), "classification")


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")
@pytest.mark.parametrize(
    ("name", "task", "count"),
    [
        ("sst2/dev.tsv", "classification", 872),
        ("ag_news/test.jsonl", "classification", 3800),
        ("glue/RTE/dev.tsv", "classification", 277),
        ("squad/dev.json", "qa", 5824),
    ],
)
def test_published_files_are_read(name, task, count):
    examples = read_examples(SHARED / name, task)
    assert len(examples) == count
    if task == "qa":
        assert all(e.passage[a.start : a.start + len(a.text)] == a.text for e in examples for a in e.answers)
    else:
        assert len(label_values(examples)) == (4 if name.startswith("ag_news") else 2)


# Regression.


@pytest.mark.parametrize(
    "content",
    [
        'sentence1\tsentence2\tscore\na "b\tc\t3.800\nd\te\t-1e1\n',
        'sentence1,sentence2,score\n"a ""b",c, 3.8\nd,e,-10\n',
        '{"sentence1": "a \\"b", "sentence2": "c", "similarity": 3.8}\n'
        '{"sentence1": "d", "sentence2": "e", "similarity": "-10"}\n',
        '[{"text": "a \\"b", "text_pair": "c", "label": 3.8}, {"text": "d", "text_pair": "e", "label": -10}]',
    ],
)
def test_the_labels_of_a_regression_are_numbers(tmp_path, content):
    expected = [ClassificationExample('a "b', "c", 3.8), ClassificationExample("d", "e", -10.0)]
    assert read_examples(_write(tmp_path, content), "regression") == expected


@pytest.mark.parametrize(
    ("content", "place", "problem"),
    [
        ("sentence\tscore\none\t1\ntwo\t3,8\n", "line 3, score", "'3,8' where a finite number belongs"),
        ("sentence\tscore\none\t1\ntwo\t\n", "line 3, score", "'' where"),
        ("text,label\none,1\ntwo,nan\n", "line 3, label", "'nan' where"),
        ('{"text": "one", "label": 1}\n{"text": "two", "label": 1e999}\n', "line 2, label", "inf where"),
        ('[{"text": "one", "label": 1}, {"text": "two", "label": true}]', "row 2, label", "true or false where"),
        ('[{"text": "one", "label": 1}, {"text": "two", "label": [1]}]', "row 2, label", "a list where"),
        ('[{"text": "one", "label": 1}, {"text": "two"}]', "row 2, label", "the label is missing"),
    ],
)
def test_a_label_that_is_not_a_number_is_named(tmp_path, content, place, problem):
    fault = _fault(_write(tmp_path, content), "regression")
    assert f"{place}: {problem}" in fault


def test_a_measurement_is_not_a_class_and_null_is_not_a_label(tmp_path):
    assert 'set task to "regression"' in _fault(_write(tmp_path, [{"text": "a", "label": 3.8}]))
    assert read_examples(_write(tmp_path, [{"text": "a", "label": None}]), "regression") == [ClassificationExample("a")]
