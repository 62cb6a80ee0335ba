"""What a user sees: one clear line for every mistake, and nothing but JSON on stdout with --json."""

import json
import os
import shutil

import pytest

from pipeline import cli

ROWS = [("good film", "1"), ("bad film", "0")] * 60


def command(monkeypatch, capsys, *arguments):
    """Runs `pocketbert ARGUMENTS` in this process. Returns exit code, stdout and stderr."""
    monkeypatch.setattr("sys.argv", ["pocketbert", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    return stopped.value.code or 0, printed.out, printed.err


@pytest.fixture
def pocketbert(monkeypatch, capsys):
    return lambda *arguments: command(monkeypatch, capsys, *arguments)


def refused(result, *parts):
    """Asserts that the command failed with one line on stderr, which holds all parts, and without a traceback."""
    code, out, err = result
    # Progress comes first. The error is the last line, and the only one that starts so.
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and err.rstrip().endswith(lines[0]), err
    assert "Traceback" not in out + err
    for part in parts:
        assert str(part) in lines[0], lines[0]


def write_tsv(path, rows, header="sentence\tlabel"):
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        'name = "t"\ntask = "classification"\n[data]\ncalibration = 50\n[teacher]\nweights = "minilm"\n'
        "[exits]\nexact = 0.1\nbalanced = 0.1\nfast = 0.1\n"
    )
    return path


@pytest.fixture
def good(tmp_path):
    return write_tsv(tmp_path / "good.tsv", [(f"{text} {number}", label) for number, (text, label) in enumerate(ROWS)])


class TestData:
    """The first stage refuses malformed data and leaves no folder behind."""

    @pytest.fixture
    def prepare(self, pocketbert, recipe, good, tmp_path):
        def run(*settings, train=None, dev=None):
            flags = [f"data.train={train or good}", f"data.dev={dev or good}", *settings]
            result = pocketbert(
                "finetune", recipe, "--out", tmp_path / "out", *(part for flag in flags for part in ("--set", flag))
            )
            assert not (tmp_path / "out" / "data").exists()
            return result

        return run

    def test_missing_file(self, prepare, tmp_path):
        refused(prepare(train=tmp_path / "none.tsv"), "none.tsv")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_unreadable_file(self, prepare, tmp_path):
        path = write_tsv(tmp_path / "secret.tsv", ROWS)
        path.chmod(0)
        refused(prepare(train=path), "secret.tsv")

    def test_wrong_columns(self, prepare, tmp_path):
        path = write_tsv(tmp_path / "columns.tsv", ROWS, header="review_body\tlabel")
        refused(prepare(train=path), "columns.tsv", "review_body")

    def test_one_label(self, prepare, tmp_path):
        path = write_tsv(tmp_path / "one.tsv", [(f"text {number}", "1") for number in range(150)])
        refused(prepare(train=path, dev=path), "label")

    def test_empty_text(self, prepare, tmp_path):
        path = write_tsv(tmp_path / "empty.tsv", [*ROWS, ("  ", "1")])
        refused(prepare(train=path), "empty.tsv", "122")

    def test_not_utf8(self, prepare, tmp_path):
        path = tmp_path / "latin.tsv"
        path.write_bytes("sentence\tlabel\ncafé\t1\n".encode("latin-1"))
        refused(prepare(train=path), "latin.tsv", "UTF-8")

    def test_label_of_dev_unknown(self, prepare, tmp_path):
        path = write_tsv(tmp_path / "dev.tsv", [("some text", "7"), ("other text", "1")])
        refused(prepare(dev=path), "dev.tsv", "'7'")

    def test_too_few_for_calibration(self, prepare):
        refused(prepare("data.calibration=100"), "data.calibration", "more than half")

    def test_too_few_for_a_mix(self, prepare):
        result = prepare("quantize.scheme=mixed", "quantize.budget_points=1")
        refused(result, "data.calibration", "50 examples leave 10", "--set data.calibration=80")

    def test_all_that_is_wrong_is_said_at_once(self, pocketbert, recipe, tmp_path):
        """Both files, and lengths that the weights do not take; then labels, columns and counts of what is read."""
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "config.json").write_text('{"max_position_embeddings": 64}')
        write_tsv(tmp_path / "train.tsv", [(f"a text {number}", "ab"[number % 2]) for number in range(90)])
        settings = [
            f"data.train={tmp_path}/tran.tsv",
            f"data.dev={tmp_path}/none",
            f"teacher.weights={tmp_path}/weights",
        ]

        def run(*settings):
            flags = [part for setting in settings for part in ("--set", setting)]
            code, _, err = pocketbert("finetune", recipe, "--out", tmp_path / "out", *flags)
            assert code == 2 and not (tmp_path / "out" / "data").exists()
            title, *lines = err[err.index("error: ") :].splitlines()
            assert title.startswith("error: ") and title.endswith(f": {len(lines)} problems")
            return lines

        lines = run(*settings)
        assert [line.rsplit(" (--set ")[1] for line in lines] == [
            f"data.train={tmp_path}/train.tsv)",
            "data.dev=split)",
            "data.max_length=64)",
            "export.max_length=64)",
        ]
        write_tsv(tmp_path / "none", [("some text", "c")])
        settings = [f"data.train={tmp_path}/train.tsv", f"data.dev={tmp_path}/none", "data.label_names=x,y,z"]
        lines = run(*settings)
        assert "'c' does not occur in the training data" in lines[0]
        assert "3 names for 2 labels" in lines[1] and lines[1].endswith("(--set data.label_names=unset)")
        assert "50 of 90 training examples" in lines[2] and lines[2].endswith("(--set data.calibration=unset)")

    def test_label_names_do_not_fit(self, prepare):
        refused(prepare('data.label_names=["a", "b", "c"]'), "data.label_names", "3 names for 2 labels")

    def test_answer_not_in_its_passage(self, prepare, tmp_path):
        question = {"id": "q7", "question": "Who?", "answers": [{"text": "Carol", "answer_start": 0}]}
        path = tmp_path / "squad.json"
        path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Alice met Bob.", "qas": [question]}]}]}))
        refused(prepare("task=qa", train=path, dev=path), "squad.json", "q7")

    def test_unanswerable_questions_need_to_be_allowed(self, prepare, tmp_path):
        questions = [
            {"id": str(number), "question": f"Who is {number}?", "answers": [], "is_impossible": True}
            for number in range(3)
        ]
        path = tmp_path / "squad.json"
        path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Alice met Bob.", "qas": questions}]}]}))
        code, _, err = prepare("task=qa", train=path, dev=path)  # there are too few questions for calibration, too
        assert code == 2 and "qa.allow_no_answer: 6 questions" in err and "--set qa.allow_no_answer=true" in err


class TestRecipe:
    def test_a_home_folder_is_expanded_in_options(self, pocketbert, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        write_tsv(tmp_path / "bad.tsv", [("", "1")])
        path = tmp_path / "r.toml"
        path.write_text('name = "t"\ntask = "classification"\n')
        refused(pocketbert("finetune", "~/r.toml", "--out=~/out", "--set", "data.train=~/bad.tsv"), "bad.tsv")
        assert (tmp_path / "out").is_dir()

    def test_unknown_key_names_the_nearest(self, pocketbert, tmp_path):
        path = tmp_path / "r.toml"
        path.write_text('name = "t"\ntask = "qa"\n[data]\ntrian = "x"\n')
        refused(pocketbert("run", path), "r.toml", "data.trian", "data.train")

    def test_setting_without_value(self, pocketbert, recipe):
        refused(pocketbert("run", recipe, "--set", "data.train"), "key=value")

    def test_unknown_weights(self, pocketbert, recipe, good, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        settings = (
            "--set",
            f"data.train={good}",
            "--set",
            f"data.dev={good}",
            "--set",
            "teacher.weights=nobody/nothing",
        )
        refused(
            pocketbert("finetune", recipe, "--out", tmp_path / "out", *settings), "teacher.weights", "nobody/nothing"
        )


class TestBundle:
    @pytest.fixture
    def copy(self, tiny_classifier, tmp_path):
        return shutil.copytree(tiny_classifier.path, tmp_path / "bundle")

    def test_not_a_bundle(self, pocketbert, tmp_path):
        refused(pocketbert("predict", tmp_path, "--text", "x"), "manifest.json", "missing")

    @pytest.mark.parametrize("name", ["model.pte", "vocab.txt", "conformance.json"])
    def test_file_missing(self, pocketbert, copy, name):
        (copy / name).unlink()
        refused(pocketbert("predict", copy, "--text", "x"), name, "missing")

    def test_file_cut(self, pocketbert, copy):
        path = copy / "model.pte"
        path.write_bytes(path.read_bytes()[:-1000])
        refused(pocketbert("evaluate", copy, "demo"), "model.pte", "bytes")

    def test_file_altered(self, pocketbert, copy):
        content = bytearray((copy / "model.pte").read_bytes())
        content[len(content) // 2] ^= 1
        (copy / "model.pte").write_bytes(content)
        refused(pocketbert("verify", copy), "model.pte", "checksum")

    def test_unknown_format(self, pocketbert, copy):
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
        refused(pocketbert("size", copy), "manifest.json", "format_version", "99")

    def test_unknown_speed(self, pocketbert, copy):
        refused(pocketbert("predict", copy, "--text", "x", "--speed", "warp"), "warp")

    def test_question_for_a_classifier(self, pocketbert, copy):
        refused(pocketbert("predict", copy, "--question", "x", "--passage", "y"), "--text")

    def test_empty_text(self, pocketbert, copy):
        refused(pocketbert("predict", copy, "--text", " "), "text")


class TestJson:
    def test_predict(self, pocketbert, tiny_classifier):
        code, out, _ = pocketbert("predict", tiny_classifier.path, "--text", "ba be bi", "--speed", "0", "--json")
        answer = json.loads(out)
        assert code == 0 and answer["label"] in ("low", "middle", "high") and answer["depth"] == 2
        assert len(answer["uncertainty"]) == 2 and answer["latency_ms"] > 0

    def test_predict_question(self, pocketbert, tiny_qa, tmp_path):
        passage = tmp_path / "passage.txt"
        passage.write_text("Ba be bi bo bu. Da de di do du.")
        code, out, _ = pocketbert("predict", tiny_qa.path, "--question", "ba?", "--passage", f"@{passage}", "--json")
        answer = json.loads(out)
        assert code == 0
        if answer["answer"]:
            assert passage.read_text()[answer["start"] : answer["end"]] == answer["answer"]

    def test_evaluate(self, pocketbert, tiny_classifier, tmp_path):
        rows = [(example.text, example.label) for example in tiny_classifier.examples]
        data = write_tsv(tmp_path / "dev.tsv", rows)
        code, out, _ = pocketbert(
            "evaluate", tiny_classifier.path, data, "--speed", "0,exact", "--limit", "10", "--threads", "1", "--json"
        )
        result = json.loads(out)
        assert (
            code == 0 and result["examples"] == 10 and [speed["speed"] for speed in result["speeds"]] == ["0", "exact"]
        )
        for speed in result["speeds"]:
            assert sum(speed["exits"]) == 10 and 0 <= speed["accuracy"] <= 1 and "f1" not in speed
        assert result["speeds"][0]["mean_depth"] == 2

    def test_study(self, pocketbert, tiny_classifier, tmp_path):
        data = write_tsv(tmp_path / "dev.tsv", [(example.text, example.label) for example in tiny_classifier.examples])
        code, out, _ = pocketbert(
            "study", tiny_classifier.path, data, "--limit", "10", "--json", "--out", tmp_path / "page"
        )
        result = json.loads(out)
        assert code == 0 and (result["task"], result["metric"], result["examples"]) == (
            "classification",
            "accuracy",
            10,
        )
        assert [speed["speed"] for speed in result["speeds"]] == ["exact", "fast"] and len(result["exits"]) == 2
        assert result["measures"][0]["measure"] == "entropy" and len(result["measures"]) >= 4
        for measure in result["measures"]:
            assert [point["max_loss"] for point in measure["within"]] == [0.005, 0.01, 0.02]
            assert measure["curve"]["mean_depth"][0] == 2 and measure["curve"]["score"][0] == result["full_depth"]
        assert json.loads((tmp_path / "page" / "study.json").read_text()) == result
        assert "dev.tsv" in (tmp_path / "page" / "study.html").read_text()

    def test_study_of_questions_as_tables(self, pocketbert, tiny_qa, tmp_path):
        questions = [
            {
                "id": example.id,
                "question": example.question,
                "answers": [{"text": a.text, "answer_start": a.start} for a in example.answers],
            }
            | ({} if example.answers else {"is_impossible": True})
            for example in tiny_qa.examples
        ]
        paragraphs = [
            {"context": example.passage, "qas": [question]} for example, question in zip(tiny_qa.examples, questions)
        ]
        data = tmp_path / "squad.json"
        data.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
        code, out, _ = pocketbert("study", tiny_qa.path, data)
        assert code == 0 and all(word in out for word in ("F1", "exact", "span_probability", "patience", "AUROC"))
        refused(pocketbert("study", tiny_qa.path, tmp_path / "none.json"), "none.json")

    def test_size_and_verify(self, pocketbert, tiny_classifier):
        code, out, _ = pocketbert("size", tiny_classifier.path, "--json")
        sizes = json.loads(out)
        assert code == 0 and sizes["total_bytes"] == sum(entry["bytes"] for entry in sizes["files"])
        code, out, _ = pocketbert("verify", tiny_classifier.path, "--json")
        checks = json.loads(out)
        assert code == 0 and checks["passed"] and checks["checks"]

    def test_doctor(self, pocketbert):
        code, out, _ = pocketbert("doctor", "--json")
        assert code == 0 and any("ExecuTorch" in finding["what"] for finding in json.loads(out))


def test_the_commands_work_for_a_regression(pocketbert, tiny_regressor, tmp_path):
    rows = [(example.text, str(example.label)) for example in tiny_regressor.examples]
    data = write_tsv(tmp_path / "dev.tsv", rows, header="sentence\tscore")
    code, out, _ = pocketbert("predict", tiny_regressor.path, "--text", rows[0][0], "--speed", "0")
    assert code == 0 and "4 of 4 segments, uncertainty 1.00, " in out and -10 < float(out.split()[0]) < 14
    code, out, _ = pocketbert("evaluate", tiny_regressor.path, data, "--speed", "0,fast", "--json")
    assert code == 0 and [speed["mean_depth"] for speed in json.loads(out)["speeds"]] == [4.0, 1.0]
    code, out, _ = pocketbert("study", tiny_regressor.path, data, "--out", tmp_path / "study")
    assert code == 0 and "NMAE" in out and "1 − NMAE" in (tmp_path / "study" / "study.html").read_text()
    assert pocketbert("verify", tiny_regressor.path)[0] == 0
    refused(
        pocketbert("predict", tiny_regressor.path, "--question", "Who?", "--passage", "Ada."),
        tiny_regressor.path,
        "--text",
    )
    refused(pocketbert("evaluate", tiny_regressor.path, "demo"), "there is no demo data for regression")
    broken = write_tsv(tmp_path / "broken.tsv", [*rows, ("bala.", "high")], header="sentence\tscore")
    refused(
        pocketbert("evaluate", tiny_regressor.path, broken),
        f"{broken}: line 26, score: 'high' where a finite number belongs",
    )


def test_bench_refuses_what_it_cannot_measure(pocketbert, tiny_classifier, tmp_path):
    refused(pocketbert("bench"), "--shape")
    refused(pocketbert("bench", tiny_classifier.path, "--shape", "distilbert"), "one of them")
    refused(pocketbert("bench", tiny_classifier.path, "--weights", tmp_path), "--weights", "--peers")
    refused(
        pocketbert("bench", "--shape", "bert", "--reference", "none"), "'bert' is not known; take distilbert or minilm"
    )
    refused(pocketbert("bench", tiny_classifier.path, "--peers", "--reference", "none"), "exits", "OUT/exits")


def test_help_names_every_command(pocketbert):
    _, out, _ = pocketbert("--help")
    stages = "run pretrain ablate finetune distill exits quantize sensitivity export report"
    for command in f"{stages} verify bench predict evaluate study size doctor".split():
        assert f"\n  {command} " in out
