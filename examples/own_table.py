"""From a table of one's own to a bundle: python examples/own_table.py messages.csv runs/messages

Without arguments it writes a small table of its own first: messages to a shop, with what each one is about.
"""

from __future__ import annotations

import csv
import itertools
import random
import sys
from pathlib import Path

import pocketbert

# A message is an opening, a subject and an ending. Only the subject decides the topic.
SUBJECTS = {
    "delivery": ("where my parcel is", "when the box arrives", "why the courier left nothing", "the delay of my order"),
    "payment": (
        "why my card was charged twice",
        "an invoice for May",
        "which cards you take",
        "the discount that is missing",
    ),
    "return": ("how I send the shoes back", "a refund for the lamp", "an exchange for a larger size", "a return label"),
    "account": ("my password", "how I change my address", "a login that fails", "how I delete my profile"),
}
OPENINGS = (
    "Please tell me about",
    "I am writing about",
    "Can somebody help me with",
    "Question:",
    "Hello, this is about",
    "Once more:",
)
ENDINGS = (".", ", thank you.", ". It is urgent.", " as soon as you can.", ". I have asked before.", "!")


def write_table(path: Path, rows: int = 500) -> None:
    """Writes a CSV with the columns message and topic, each message once."""
    every = [
        (f"{opening} {subject}{ending}", topic)
        for topic, subjects in SUBJECTS.items()
        for opening, subject, ending in itertools.product(OPENINGS, subjects, ENDINGS)
    ]
    random.Random(0).shuffle(every)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "topic"])
        writer.writerows(every[:rows])


def main(table: str = "messages.csv", out: str = "runs/messages") -> None:
    if not Path(table).is_file():
        write_table(Path(table))
    # Columns, labels and lengths are guessed from the table, and a part of it is kept for measuring.
    pocketbert.run(table, out=out, progress=True)
    runner = pocketbert.load(out)
    for text in ("My parcel has not come.", "I want my money back."):
        result = runner.classify(text)
        print(f"{text} -> {result.label} (score {result.score:.2f}, {result.depth} segments)")


if __name__ == "__main__":
    main(*sys.argv[1:])
