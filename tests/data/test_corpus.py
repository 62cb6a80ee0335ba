"""A corpus is streamed, its blocks hold every token once, and a file that is not text is refused by name."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from pipeline.data import corpus
from pipeline.data.corpus import corpus_digest, open_corpus, read_documents, write_corpus
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.recipe import Pretrain
from pipeline.support.errors import UserError

LINE = "ba be bi bo bu da de di do du.\n"


@pytest.fixture(scope="module")
def tokenizer(tiny_vocab):
    return WordPieceTokenizer.from_vocab(tiny_vocab)


def blocks_of(source, tokenizer, tmp_path, **options):
    options = Pretrain(corpus=str(source), **options)
    write_corpus(str(source), tokenizer, tmp_path / "ids", options)
    return open_corpus(tmp_path / "ids", tokenizer, options)


def fault(source) -> str:
    """Returns the error that reading a corpus raises."""
    with pytest.raises(UserError) as caught:
        list(read_documents(str(source)))
    return str(caught.value)


def test_blocks_hold_every_token_once_and_in_order(tokenizer, tmp_path):
    folder = tmp_path / "books"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text(LINE * 5)
    (folder / "sub" / "b.txt").write_text("\ufeff" + LINE * 3 + "\n\n" + LINE)
    (folder / ".hidden").write_bytes(b"\0")
    blocks = blocks_of(folder, tokenizer, tmp_path, length=16)
    expected = [*tokenizer.encode(LINE * 5).ids, tokenizer.sep_id, *tokenizer.encode(LINE * 4).ids]
    actual = []
    for number, item in enumerate(blocks):
        assert item.ids[0] == tokenizer.cls_id and item.ids[-1] == tokenizer.sep_id
        assert len(item.ids) == 16 or number == len(blocks) - 1
        assert not item.type_ids.any() and len(item.type_ids) == len(item.ids)
        actual += item.ids[1:-1].tolist()
    # Only a rest that is too short for a block is left out.
    assert actual == expected[: len(actual)] and len(expected) - len(actual) < 6


def test_a_corpus_is_never_whole_in_memory(tokenizer, tmp_path, monkeypatch):
    """An endless stream is read up to the limit, and little further."""
    lines_read = 0

    def endless(source, column):
        nonlocal lines_read
        while True:
            lines_read += 1
            yield 0, LINE

    monkeypatch.setattr(corpus, "read_documents", endless)
    blocks = blocks_of("some/set", tokenizer, tmp_path, length=16, limit=30)
    assert len(blocks) == 30 and len(blocks.tokens) == 30 * 14
    assert lines_read <= corpus.PIECES_AT_ONCE
    assert isinstance(blocks.tokens, np.memmap) and blocks.tokens.dtype == np.uint16


def test_a_line_longer_than_a_piece_is_read_in_parts(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_PIECE_BYTES", 7)  # cuts words, and the two bytes of one letter
    file = tmp_path / "one.txt"
    file.write_text("é" * 20 + " end", encoding="utf-8")
    assert "".join(text for _, text in read_documents(str(file))) == "é" * 20 + " end"


def test_a_finished_file_is_not_written_again(tokenizer, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(LINE * 20)
    first = blocks_of(file, tokenizer, tmp_path, length=16)
    file.unlink()
    again = blocks_of(file, tokenizer, tmp_path, length=16)
    assert len(again) == len(first) and np.array_equal(again.tokens, first.tokens)


def test_held_out_blocks_are_not_among_the_rest(tokenizer, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(LINE * 40)
    blocks = blocks_of(file, tokenizer, tmp_path, length=16)
    rest, held = blocks.split(5, seed=1)
    assert len(held) == 5 and sorted([*rest.numbers, *held.numbers]) == list(range(len(blocks)))
    assert np.array_equal(held.numbers, blocks.split(5, seed=1)[1].numbers)
    assert not np.array_equal(held.numbers, blocks.split(5, seed=2)[1].numbers)
    assert np.array_equal(held[0].ids, blocks[int(held.numbers[0])].ids)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b" \n\n\t\n", "empty"),
        (b"fine\nfine\nbin\x00ary\n", "line 3: this is not text but binary"),
        (b"\x1f\x8b\x08rest", "gzip"),
        (b"fine\ncaf\xe9 au lait\n", "line 2: this is not UTF-8"),
        (b"cut in a letter \xc3", "this is not UTF-8"),
    ],
)
def test_empty_and_binary_files_are_named(tmp_path, content, words):
    (tmp_path / "good.txt").write_text(LINE)
    (tmp_path / "zbad.txt").write_bytes(content)
    message = fault(tmp_path)
    assert "zbad.txt" in message and words in message and "; " in message and "\n" not in message


def test_a_source_without_files_is_refused(tmp_path):
    assert "holds no files" in fault(tmp_path)
    assert "there is no such file" in fault(tmp_path / "none.txt")


def test_too_little_text_is_refused(tokenizer, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(LINE)
    with pytest.raises(UserError, match=r"a\.txt: pretrain\.length: its 11 tokens do not fill two blocks of 128"):
        blocks_of(file, tokenizer, tmp_path)
    assert not (tmp_path / "ids").exists()


def hub(monkeypatch, rows):
    """Puts rows in the place of every hub data set. Returns the list of requests."""
    requests = []

    def load_dataset(name, config, split, streaming=False):
        requests.append((name, config, split, streaming))
        return rows

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return requests


def test_a_hub_set_is_streamed(monkeypatch):
    requests = hub(monkeypatch, iter([{"text": "one"}, {"text": "two"}]))
    assert list(read_documents("owner/books:train")) == [(0, "one"), (1, "two")]
    assert requests == [("owner/books", None, "train", True)]


def test_a_hub_set_without_the_column_is_refused(monkeypatch):
    hub(monkeypatch, iter([{"body": "one"}]))
    assert "pretrain.text: row 1 has no text in column 'text'; set it to one of: body" in fault("owner/books:train")


def test_a_stream_that_breaks_off_is_reported(monkeypatch):
    def rows():
        yield {"text": "one"}
        raise ConnectionError("gone\nand more")

    hub(monkeypatch, rows())
    message = fault("owner/books:train")
    assert "broke off after row 1" in message and "run the same command again" in message and "more" not in message


def test_a_changed_file_has_another_digest(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    first = corpus_digest(str(tmp_path))
    (tmp_path / "a.txt").write_text("two")
    assert corpus_digest(str(tmp_path)) != first
    assert corpus_digest("owner/books:train") == ["owner/books:train"]


def test_a_slice_of_blocks_is_blocks(tokenizer, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(LINE * 20)
    blocks = blocks_of(file, tokenizer, tmp_path, length=16)
    part = blocks[2:5]
    assert len(part) == 3 and np.array_equal(part[0].ids, blocks[2].ids)
