"""Tables that nobody prepared, for tests of what is told from their content."""

import csv
import io
import random

COLUMNS = ("Ticket-Nr", "Eingang", "Kunden Nachricht", "Kanal", "Anliegen (neu)")
THINGS = ("card", "savings account", "app", "statement", "PIN", "phone")
TIMES = ("today", "yesterday", "on Monday", "this morning", "last week", "just now", "two days ago")
TEMPLATES = {
    "card lost": ("I lost my {thing} {time}", "my {thing} was stolen {time}", "please block the {thing}, it is gone"),
    "transfer": ("send {amount} euros to Anna {time}", "how do I transfer {amount} euros", "pay the rent of {amount}"),
    "balance": ("how much money is on my {thing}", "did {amount} euros arrive {time}", "show me the balance {time}"),
    "broken": ("the {thing} shows an error {time}", "why is the {thing} so slow {time}", "cannot log in {time}"),
    "complaint": (
        "I was charged {amount} twice {time}",
        "nobody answered me {time}",
        "the fee of {amount} is too high",
    ),
}


def intent_rows(count: int = 600) -> list[dict[str, str]]:
    """Returns messages in five intents, beside a number, a date and a channel."""
    chance = random.Random(0)
    rows = []
    for number in range(count):
        intent = chance.choice(list(TEMPLATES))
        text = chance.choice(TEMPLATES[intent]).format(
            thing=chance.choice(THINGS), time=chance.choice(TIMES), amount=chance.randint(2, 900)
        )
        date = f"2025-{chance.randint(1, 12):02d}-{chance.randint(1, 28):02d}"
        rows.append(dict(zip(COLUMNS, (f"T-{number}", date, text, chance.choice(("app", "mail", "chat")), intent))))
    return rows


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    """Returns rows as the text of a CSV file."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
