"""Proposed recipes fit files that nobody prepared: task, columns, lengths, and what so few rows can show."""

import json
import random

import pytest

from pipeline.recipe import load_recipe
from pipeline.run.propose import propose, write_proposal
from pipeline.run.survey import name_of_data
from pipeline.support.errors import UserError
from pipeline.tasks.types import Columns
from tests.data.tables import as_csv, intent_rows


def write(folder, text, name="train.csv", encoding="utf-8"):
    file = folder / name
    file.write_bytes(text.encode(encoding))
    return file


@pytest.fixture
def intents(tmp_path):
    folder = tmp_path / "bank intents"
    folder.mkdir()
    return write(folder, as_csv(intent_rows()))


def test_a_table_of_intents(intents, tmp_path):
    proposal = propose(intents)
    recipe = proposal.recipe
    assert (recipe.name, recipe.task) == ("bank-intents", "classification")
    assert (recipe.data.text, recipe.data.text_pair, recipe.data.label) == ("Kunden Nachricht", "", "Anliegen (neu)")
    assert (recipe.data.dev, recipe.data.max_length, recipe.export.max_length) == ("split", 32, 32)
    assert recipe.export.coreml_buckets == [32] and not recipe.teacher.token_types
    counts = proposal.to_json()["classes"]
    assert len(counts) == 5 and sum(counts.values()) == 600
    # Every promise can be shown by the calibration examples that the recipe takes, and more than half are learnt from.
    assert recipe.exits.exact < recipe.exits.balanced < recipe.exits.fast and not proposal.choices.missing
    assert 2 * recipe.data.calibration < len(proposal.survey.train)
    file = tmp_path / "sub" / "recipe.toml"
    write_proposal(proposal, file)
    assert load_recipe(file) == recipe
    with pytest.raises(UserError, match="exists; remove it, or give another file with --out"):
        write_proposal(proposal, file)


def test_few_rows_are_seen_more_often_and_promise_less(tmp_path):
    few = propose(write(tmp_path, as_csv(intent_rows(200)), "few.csv"))
    many = propose(write(tmp_path, as_csv(intent_rows(6000)), "many.csv"))
    assert few.recipe.distill.training.epochs > many.recipe.distill.training.epochs
    assert few.recipe.exits.exact > many.recipe.exits.exact
    for name, missing in few.choices.missing.items():
        assert any(f"speed {name} is left out; {missing} more" in line for line in few.warnings)
    with pytest.raises(UserError, match="tiny.csv: .* too few, .*; give at least 100 different ones"):
        propose(write(tmp_path, as_csv(intent_rows(60)), "tiny.csv"))


def test_a_file_of_questions(tmp_path):
    chance = random.Random(0)
    paragraphs = []
    for number in range(60):
        words = [chance.choice("alpha beta gamma delta omega".split()) for _ in range(chance.randint(40, 250))]
        context = " ".join([*words, f"item {number}"])
        answer = {"text": f"item {number}", "answer_start": context.index("item")}
        qas = [
            {"id": f"{number}-{index}", "question": f"Which item is number {index}?", "answers": [answer]}
            for index in range(5)
        ]
        paragraphs.append({"context": context, "qas": qas})
    file = write(tmp_path, json.dumps({"data": [{"paragraphs": paragraphs}]}), "handbook.json")
    proposal = propose(file)
    recipe = proposal.recipe
    assert (recipe.name, recipe.task, recipe.qa.allow_no_answer) == ("handbook", "qa", False)
    assert recipe.qa.stride < recipe.qa.window - recipe.qa.max_question
    assert recipe.export.max_length == recipe.qa.window and max(recipe.export.coreml_buckets) == recipe.qa.window
    held = {example.passage for example in proposal.survey.dev}
    assert held and not held & {example.passage for example in proposal.survey.train}
    with pytest.raises(UserError, match="questions on passages"):
        propose(file, task="classification")


def test_sentence_pairs_and_regression(tmp_path):
    rows, chance = intent_rows(400), random.Random(1)
    pairs = [{"one": first["Kunden Nachricht"], "two": chance.choice(rows)["Kunden Nachricht"],
              "likeness": f"{chance.random() * 5:.1f}"} for first in rows]  # fmt: skip
    recipe = propose(write(tmp_path, as_csv(pairs), "likeness.csv")).recipe
    assert (recipe.task, recipe.data.text, recipe.data.text_pair) == ("regression", "one", "two")
    assert recipe.teacher.token_types and recipe.exits.uncertainty == "change"
    as_classes = propose(tmp_path / "likeness.csv", task="classification", columns=Columns(label="likeness"))
    assert as_classes.recipe.task == "classification"


def test_a_given_dev_file_is_used_and_its_overlap_counted(tmp_path):
    rows = intent_rows(500)
    train, dev = write(tmp_path, as_csv(rows[:400])), write(tmp_path, as_csv(rows[400:]), "dev.csv")
    seen = {row["Kunden Nachricht"].casefold() for row in rows[:400]}
    overlap = sum(row["Kunden Nachricht"].casefold() in seen for row in rows[400:])
    proposal = propose(train, dev)
    assert proposal.recipe.data.dev == str(dev) and len(proposal.survey.train) == 400
    assert overlap and proposal.survey.overlap == overlap
    assert any(f"{overlap} of 100 dev examples are in train too" in line for line in proposal.warnings)


def test_labels_that_differ_in_case_or_contradict_are_said(tmp_path):
    rows = [{"m": row["Kunden Nachricht"], "l": ("spam", " Spam", "ham")[number % 3]}
            for number, row in enumerate(intent_rows(300))]  # fmt: skip
    rows += [{"m": rows[0]["m"].upper(), "l": "ham"}]
    proposal = propose(write(tmp_path, as_csv(rows)))
    assert set(proposal.survey.classes) == {"spam", "Spam", "ham"}
    assert any("'Spam' and 'spam'" in line for line in proposal.warnings)
    assert any("with different labels" in line for line in proposal.warnings)


def test_byte_order_marks_semicolons_bars_and_odd_names_are_read(tmp_path):
    rows = [{'te"xt\t#': row["Kunden Nachricht"] + "\nsecond line", "la\\bel": row["Anliegen (neu)"]}
            for row in intent_rows(200)]  # fmt: skip
    rows = [{name.replace("\t", " "): value for name, value in row.items()} for row in rows]
    for delimiter in ";|":
        text = "\ufeff" + as_csv(rows, delimiter)
        recipe = propose(write(tmp_path, text)).recipe
        assert (recipe.data.text, recipe.data.label) == ('te"xt #', "la\\bel")


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("text,label\nGrüße,a\n", "latin-1", "line 2: byte .* is not UTF-8"),
        ("text,label\n", "utf-8", "holds no examples"),
        (
            "text,label\n" + "".join(f"words {row} of it,{('', 'a', 'b')[row % 3]}\n" for row in range(99)),
            "utf-8",
            "line 2, label: .* empty",
        ),
    ],
)
def test_a_bad_file_gets_its_one_line(tmp_path, text, encoding, message):
    with pytest.raises(UserError, match=message) as caught:
        propose(write(tmp_path, text, encoding=encoding))
    assert "\n" not in str(caught.value) and "train.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/x/intents/train.csv", "intents"),
        ("/x/intents/mine.tsv", "mine"),
        ("/x/squad/train_subset.json", "squad"),
        ("/x/Größe (neu)/data.csv", "Groe-neu"),
        ("nyu-mll/glue/sst2:train", "sst2"),
        ("rajpurkar/squad:train", "squad"),
        ("demo", "demo-qa"),
    ],
)
def test_a_run_is_called_after_its_data(source, name):
    assert name_of_data(source, "qa") == name
