"""A working folder as the examples of the docstrings have it: bundles in runs/, a table, a recipe and a checkpoint."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import pocketbert

# What decides the label, and what says nothing.
OPINIONS = {"negative": ("dull", "predictable"), "positive": ("moving", "clever")}
OTHER_WORDS = "a an the and film story plot with but it is was".split()
RECIPE = """
name = "reviews"
task = "classification"
precision = "fp32"
[data]
train = "reviews.csv"
dev = "reviews.csv"
dev_limit = 40
calibration = 60
max_length = 32
[teacher]
weights = "encoder"
{training}
[distill]
{training}
[exits]
exact = 0.1
balanced = 0.15
fast = 0.2
{training}
[bench]
reference = "none"
lengths = [16]
repeats = 3
[export]
max_length = 32
"""


@dataclass(frozen=True)
class Workplace:
    """A folder with the files that the examples name, and the run that made `runs/reviews`."""

    folder: Path
    finished: pocketbert.FinishedRun


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, tiny_qa, tiny_regressor) -> Workplace:
    """Trains a classifier of two layers on a table of reviews, by `pocketbert.run`; the other tasks are untrained."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_reviews(Path("reviews.csv"))
        write_checkpoints(Path("encoder"), Path("my-checkpoint"))
        training = "training = { epochs = 3, batch_size = 8, learning_rate = 1e-3 }"
        Path("reviews.toml").write_text(RECIPE.format(training=training))
        finished = pocketbert.run("reviews.toml", settings={"export.coreml": False})
    for name, tiny in (("questions", tiny_qa), ("stars", tiny_regressor)):
        shutil.copytree(tiny.path, folder / "runs" / name / "bundle")
    return Workplace(folder, finished)


def write_reviews(path: Path) -> None:
    chance, rows = random.Random(0), []
    for number in range(400):
        label = ("negative", "positive")[number % 2]
        words = chance.choices(OTHER_WORDS, k=chance.randint(3, 14))
        words[chance.randrange(len(words))] = chance.choice(OPINIONS[label])
        rows.append(f"{' '.join(words)} {number},{label}")
    path.write_text("\n".join(["review,label", *rows]) + "\n")


def write_checkpoints(encoder: Path, classifier: Path) -> None:
    """Writes two BERTs of 2 layers with random weights, as Hugging Face saves them: one without a head, one with."""
    from pipeline.support.quiet import import_quietly

    transformers = import_quietly("transformers")
    digits = [*"0123456789", *(f"##{digit}" for digit in range(10))]
    words = [*OTHER_WORDS, *OPINIONS["negative"], *OPINIONS["positive"]]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words, *digits]
    labels = dict(enumerate(OPINIONS))
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
    )
    transformers.set_seed(0)
    for folder, model in (
        (encoder, transformers.BertModel(config)),
        (classifier, transformers.BertForSequenceClassification(config)),
    ):
        model.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
