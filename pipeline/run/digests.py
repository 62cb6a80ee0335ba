"""Digests of what a recipe only names: data files, weights and a corpus. They go into the keys of stages."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.corpus import corpus_digest
from pipeline.recipe import Recipe
from pipeline.support.digests import sha256_of

WEIGHT_FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")  # of a checkpoint without vocab.txt


def file_digest(source: str) -> str:
    """Returns the digest of a file, or the name itself where it is no file but a data set."""
    return sha256_of(Path(source)) if Path(source).is_file() else source


def data_digests(recipe: Recipe) -> list[str]:
    """Returns what identifies the training and the dev data, and the calibration data where they are a file."""
    data = recipe.data
    sources = [data.train, data.dev, *([data.calibration] if isinstance(data.calibration, str) else [])]
    return [file_digest(source) for source in sources]


def unlabelled_digest(recipe: Recipe) -> str | None:
    """Returns what identifies the texts without labels, if there are any."""
    source = recipe.distill.unlabelled
    return file_digest(source) if source else source


def weights_digests(weights: str) -> list[str]:
    """Returns the digests of a local checkpoint's files, or its name where it is not a local folder."""
    folder = Path(weights)
    # With a vocab.txt the list is what it was before tokenizer.json was read, so that finished runs stay finished.
    names = WEIGHT_FILES if (folder / "vocab.txt").is_file() else (*WEIGHT_FILES, *TOKENIZER_FILES)
    return [sha256_of(folder / name) for name in names if (folder / name).is_file()] or [str(folder)]


def teacher_digests(recipe: Recipe) -> list[str]:
    """Returns what identifies the teacher's weights."""
    return weights_digests(recipe.teacher.weights)


def pretraining_digests(recipe: Recipe) -> list[object]:
    """Returns what identifies the corpus, both teachers, and the shape of the student.

    The exits of the student are left out: pre-training does not see them.
    """
    corpus, student = recipe.pretrain.corpus, recipe.student
    assert corpus is not None  # else the recipe does not have the stage pretrain
    teachers = [weights_digests(recipe.pretrain.teacher or recipe.teacher.weights), teacher_digests(recipe)]
    return [corpus_digest(corpus), teachers, student.layers, student.initialise]
