"""Writes files that a reader of the pages would have: a table, its dev part, questions, a checkpoint."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.demo import classification, qa
from pipeline.data.examples import ClassificationExample, QAExample
from pipeline.model.locate import minilm_folder

TABLE_ROWS, QUESTIONS = 1200, 400  # few, so that the blocks end soon
TRAINING_STEPS, BATCH_SIZE = 75, 16


def write_reader_files(folder: Path) -> None:
    """Writes tables, texts without labels, questions and a checkpoint to a folder."""
    train, dev = classification.generate()
    write_table(folder / "train.csv", train[:TABLE_ROWS])
    write_table(folder / "dev.csv", dev)
    write_table(folder / "reviews.csv", train[:TABLE_ROWS])
    unlabelled = (json.dumps({"text": example.text}) + "\n" for example in train[TABLE_ROWS:])
    (folder / "unlabelled.jsonl").write_text("".join(unlabelled), encoding="utf-8")
    (folder / "messages.txt").write_text("".join(f"{example.text}\n" for example in dev[:20]), encoding="utf-8")
    questions, dev_questions = qa.generate()
    write_squad(folder / "questions.json", questions[:QUESTIONS])
    write_squad(folder / "dev.json", dev_questions)
    write_checkpoint(folder / "checkpoint")
    (folder / "my-checkpoint").symlink_to("checkpoint")


def write_table(path: Path, examples: Sequence[ClassificationExample]) -> None:
    """Writes a CSV with the columns text and label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((example.text, example.label) for example in examples)


def write_squad(path: Path, examples: Sequence[QAExample]) -> None:
    """Writes questions in SQuAD's form, each with its own paragraph."""
    paragraphs = [
        {
            "context": example.passage,
            "qas": [
                {
                    "id": example.id,
                    "question": example.question,
                    "answers": [{"text": answer.text, "answer_start": answer.start} for answer in example.answers],
                }
            ],
        }
        for example in examples
    ]
    document = {"version": "1.1", "data": [{"title": "demo", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(document), encoding="utf-8")


def write_checkpoint(folder: Path) -> None:
    """Writes a BERT classifier as `save_pretrained` does: MiniLM, fine-tuned for seconds."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # that the head is new is what we want
    logging.disable_progress_bar()
    torch.manual_seed(0)
    source = minilm_folder()
    model = BertForSequenceClassification.from_pretrained(source, id2label={0: "negative", 1: "positive"}).train()
    tokenizer = AutoTokenizer.from_pretrained(source)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    examples = classification.generate()[0]
    for start in range(0, TRAINING_STEPS * BATCH_SIZE, BATCH_SIZE):
        batch = examples[start : start + BATCH_SIZE]
        inputs = tokenizer([example.text for example in batch], padding=True, return_tensors="pt")
        labels = torch.tensor([int(example.label == "positive") for example in batch])
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
