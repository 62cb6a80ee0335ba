"""The columns of a table are told from their content; where that is not possible, one line says what to write."""

import random

import pytest

from pipeline.data.guess import guess_columns
from pipeline.data.rows import Row
from pipeline.support.errors import UserError
from tests.data.tables import intent_rows


def guess(rows, **given):
    return guess_columns("train.csv", [Row(f"line {number}", row) for number, row in enumerate(rows, 2)], **given)


def test_odd_names_are_no_obstacle():
    found = guess(intent_rows())
    assert (found.text, found.text_pair, found.label) == ("Kunden Nachricht", None, "Anliegen (neu)")
    assert not found.numbers
    assert {column.name: column.kind for column in found.unused} == {
        "Ticket-Nr": "id",
        "Eingang": "date",
        "Kanal": "class",
    }


def test_two_columns_of_sentences_are_a_pair_in_the_order_of_the_file():
    rows = intent_rows(200)
    table = [
        {"": str(number), "b": row["Kunden Nachricht"], "a": other["Kunden Nachricht"], "same": str(number % 2)}
        for number, (row, other) in enumerate(zip(rows, reversed(rows)))
    ]
    found = guess(table)
    assert (found.text, found.text_pair, found.label) == ("b", "a", "same")


@pytest.mark.parametrize(
    ("label", "numbers"),
    [
        (lambda chance: f"{chance.random() * 5:.2f}", True),
        (lambda chance: chance.randint(0, 100), True),
        (lambda chance: chance.randint(1, 5), False),
        (lambda chance: chance.choice(("yes", "no")), False),
    ],
)
def test_numbers_with_many_values_are_to_be_predicted_and_few_are_classes(label, numbers):
    chance = random.Random(1)
    found = guess([{"words": row["Kunden Nachricht"], "out": label(chance)} for row in intent_rows(300)])
    assert (found.text, found.label, found.numbers) == ("words", "out", numbers)


def test_usual_names_come_before_content():
    rows = [{**row, "label": row["Kanal"]} for row in intent_rows(100)]
    assert guess(rows).label == "label"


def test_short_messages_that_come_again_are_texts_still():
    chance = random.Random(2)
    texts = [f"{verb} {noun}" for verb in ("open", "close", "dim", "stop", "start", "find") for noun in "abcdefgh"]
    rows = [{"x": chance.choice(texts), "y": chance.choice(("on", "off", "other"))} for _ in range(600)]
    found = guess(rows)
    assert (found.text, found.label) == ("x", "y")


def test_a_choice_is_left_to_the_user_in_one_line():
    rows = [{"a": row["Kunden Nachricht"], "b": row["Anliegen (neu)"], "c d": f"x{number % 4}"}
            for number, row in enumerate(intent_rows(200))]  # fmt: skip
    with pytest.raises(UserError, match=r"2 columns may hold the label: 'b', 'c d'; .*--set data.label=b$"):
        guess(rows)
    assert guess(rows, label="c d").label == "c d"
    with pytest.raises(UserError, match="no column 'e'.*set data.label to one of: 'a', 'b', 'c d'"):
        guess(rows, label="e")


def test_three_columns_of_sentences_are_a_choice_too():
    rows = intent_rows(200)
    table = [{"a": one["Kunden Nachricht"], "b": two["Kunden Nachricht"], "c": one["Kunden Nachricht"] + " really",
              "l": one["Anliegen (neu)"]} for one, two in zip(rows, reversed(rows))]  # fmt: skip
    with pytest.raises(UserError, match="3 columns hold texts: 'c', .*--set data.text_pair="):
        guess(table)
    assert (guess(table, text="b").text, guess(table, text="b", text_pair="a").text_pair) == ("b", "a")


@pytest.mark.parametrize("first", [{"I lost my card today, please help me": "x", "lost": "lost"}, {"a": "b", "7": "9"}])
def test_a_file_without_a_header_is_told_from_one_with_it(first):
    rows = [first | {list(first)[1]: value} for value in (list(first)[1], "other", "third")]
    with pytest.raises(UserError, match="line 1: the first line looks like a row.*such as text,label"):
        guess(rows)


def test_a_table_without_labels_or_texts_is_refused():
    texts = [{"text": row["Kunden Nachricht"], "id": number} for number, row in enumerate(intent_rows(100))]
    with pytest.raises(UserError, match="no column holds labels.*--set data.label=NAME: 'text', 'id'"):
        guess(texts)
    with pytest.raises(UserError, match="no column holds texts.*--set data.text=NAME"):
        guess([{"id": number, "label": number % 2} for number in range(100)])
