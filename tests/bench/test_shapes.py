from pathlib import Path

import pytest

from pipeline.bench import shapes
from pipeline.bench.shapes import letter_vocabulary, shape_bundle
from pipeline.bundle.opening import Bundle
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.checkpoint import load_model
from pipeline.model.encoder import EncoderConfig
from pipeline.runtime.runner import Runner
from pipeline.support.errors import UserError


def test_a_shape_gives_a_bundle_that_answers_and_the_weights_beside_it(monkeypatch):
    small = EncoderConfig(vocab_size=200, hidden_size=32, layers=1, heads=2, intermediate_size=64, max_positions=32)
    monkeypatch.setitem(shapes.SHAPES, "small", small)
    folder = shape_bundle("small")
    opened = Bundle.open(folder / "bundle")
    assert opened.manifest.provenance["weights"] == "random, seed 0" and opened.manifest.scheme == "int8"
    assert Runner(opened).classify("An outstanding hotel.", None, "0").label in ("negative", "positive")
    assert load_model(folder / "exits").config == small
    monkeypatch.setattr(shapes, "write_bundle", lambda *_, **__: pytest.fail("made again"))
    assert shape_bundle("small") == folder
    monkeypatch.setattr(shapes, "code_digest", lambda: "another version of the exporter")
    with pytest.raises(pytest.fail.Exception, match="made again"):
        shape_bundle("small")


def test_an_unknown_shape_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(UserError, match="--shape.*'bert'.*distilbert or minilm"):
        shape_bundle("bert")


def test_the_vocabulary_spells_any_word(tmp_path: Path):
    tokens = letter_vocabulary(30522)
    assert len(tokens) == len(set(tokens)) == 30522
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    tokenizer = WordPieceTokenizer.from_vocab(tmp_path / "vocab.txt", True)
    assert [tokens[token_id] for token_id in tokenizer.encode("Hi, 9!").ids] == ["h", "##i", ",", "9", "!"]
