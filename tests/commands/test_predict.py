"""`pocketbert predict` on many lines: one line of output each, and a bad line stops nothing."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest

from pipeline import cli
from pipeline.bundle.opening import Bundle
from pipeline.runtime.runner import Runner


@pytest.fixture
def predict(monkeypatch, capsys):
    def run(bundle, *arguments, stdin: bytes = b"", terminal: bool = False):
        stream = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(sys, "argv", ["pocketbert", "predict", str(bundle), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out.splitlines(), printed.err

    return run


def untimed(fields):
    return {name: value for name, value in fields.items() if name != "latency_ms"}


def test_each_line_gives_the_json_of_a_single_call(predict, tiny_classifier, tmp_path):
    runner = Runner(Bundle.open(tiny_classifier.path))
    file = tmp_path / "texts.txt"
    requests = [
        "bala dume nofi",
        json.dumps({"text": "bala dume", "text_pair": "nofi", "speed": "full"}),
        json.dumps({"text": "bala", "speed": 1.5, "question": None}),
    ]
    file.write_text("\r\n".join(requests), encoding="utf-8-sig")
    code, lines, _ = predict(tiny_classifier.path, "--lines", file, "--json", "--speed", "fast")
    expected = [
        runner.classify("bala dume nofi", speed="fast"),
        runner.classify("bala dume", "nofi", "full"),
        runner.classify("bala", speed=1.5),
    ]
    assert code == 0 and [untimed(json.loads(line)) for line in lines] == [
        json.loads(json.dumps(untimed(result.to_json()))) for result in expected
    ]
    assert [json.loads(line)["depth"] for line in lines] == [1, 2, 1]


def test_questions_are_answered_from_standard_input(predict, tiny_qa):
    example = tiny_qa.examples[1]
    line = json.dumps({"question": example.question, "passage": example.passage + "\n" + example.passage})
    code, lines, _ = predict(tiny_qa.path, "--lines", "-", "--json", "--top-k", "3", stdin=line.encode())
    answer = json.loads(lines[0])
    assert code == 0 and len(lines) == 1 and len(answer["candidates"]) == 3
    assert {name: answer["candidates"][0][name] for name in ("answer", "start", "end", "score")} == {
        name: answer[name] for name in ("answer", "start", "end", "score")
    }
    code, lines, _ = predict(tiny_qa.path, "--lines", "-", "--top-k", "3", stdin=line.encode())
    assert code == 0 and len(lines) == 1


BAD_LINES = {
    b"": "text: is empty",
    b'{"text": "bala"': "is not JSON",
    b'{"text": 3}': "text: 3 is not a text",
    b'{"text": "bala", "label": "low"}': "label: is not known; a line has text, text_pair",
    b'{"text": "bala", "speed": true}': "speed: true is not",
    b'{"text": "bala", "speed": "warp"}': "'warp' is not known",
    b'{"question": "bala", "passage": "dume"}': "give --text",
    b"bal\xff": "byte 3 is not UTF-8",
    b"[" * 20 + b"{": None,  # a text like any other
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_gets_an_error_and_the_next_is_read(predict, tiny_classifier, line):
    stdin = b"bala\n" + line + b"\ndume\n"
    code, lines, err = predict(tiny_classifier.path, "--lines", "-", "--json", stdin=stdin)
    first, middle, last = map(json.loads, lines)
    assert "label" in first and "label" in last
    if BAD_LINES[line] is None:
        assert code == 0 and "label" in middle
    else:
        assert code == 1 and set(middle) == {"error"} and BAD_LINES[line] in middle["error"]
        assert err.startswith("1 of 3 lines failed, first line 2: ")
        assert predict(tiny_classifier.path, stdin=stdin)[1][1].startswith("error: ")


def test_half_a_surrogate_pair_can_be_printed(predict, tiny_qa):
    line = json.dumps({"question": "ba?", "passage": "\ud83d"}).encode() + b"\n"
    line += json.dumps({"question": "ba?", "passage": "ba\ud83dba"}).encode()
    for options in ((), ("--json",)):
        code, lines, _ = predict(tiny_qa.path, "--lines", "-", *options, stdin=line)
        assert len(lines) == 2


def test_a_pipe_alone_is_answered_line_by_line(predict, tiny_classifier):
    code, lines, _ = predict(tiny_classifier.path, stdin=b"bala dume\nnofi\n")
    assert code == 0 and len(lines) == 2
    assert lines[0].split(" ")[0] in ("low", "middle", "high") and "segments" in lines[0]


@pytest.mark.parametrize("terminal", [True, False])
def test_without_any_input_it_says_what_to_give(predict, tiny_classifier, terminal):
    code, lines, err = predict(tiny_classifier.path, terminal=terminal)
    assert code == 2 and not lines and err.rstrip().endswith("if it was trained on pairs")


def test_what_cannot_be_read_is_refused(predict, tiny_classifier, tiny_regressor, tmp_path):
    for arguments, message in (
        ((tiny_classifier.path, "--lines", tmp_path / "none"), "none: cannot be read (No such file or directory)"),
        ((tiny_classifier.path, "--lines", tmp_path), "cannot be read (Is a directory)"),
        ((tiny_classifier.path, "--lines", "-", "--text", "bala"), "--lines: goes without --text"),
        ((tiny_regressor.path, "--text", "bala", "--top-k", "2"), "top_k: this bundle predicts a number"),
    ):
        code, lines, err = predict(*arguments)
        assert code == 2 and not lines and err.startswith("error: ") and message in err


def test_the_other_candidates_follow_the_answer(predict, tiny_classifier):
    code, lines, _ = predict(tiny_classifier.path, "--text", "bala dume", "--top-k", "2")
    assert code == 0 and len(lines) == 3
    assert lines[1].split()[1] == lines[0].split()[0] and float(lines[1].split()[0]) > float(lines[2].split()[0])


def test_a_run_stands_for_its_bundle(predict, tiny_classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_classifier.path, "runs/mine/bundle")
    assert predict("mine", "--text", "bala")[0] == predict("runs/mine", "--text", "bala")[0] == 0
    code, _, err = predict("yours", "--text", "bala")
    assert code == 2 and "runs/mine" in err
