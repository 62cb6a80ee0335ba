"""Plain text to pre-train on: read as a stream, kept on disk as one row of token ids, given out in blocks of equal length."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.data.files import BINARY, exists, first_line, hub_name, hub_rows
from pipeline.data.items import Item
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.recipe import Pretrain
from pipeline.support.digests import sha256_of
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent

WAY_OUT = 'give a text file in UTF-8, a folder of such files, or a hub set as "owner/name:split"'
LONGEST_PIECE = 1 << 20  # bytes; a file may be a single line
PIECES_AT_ONCE = 256
SHORTEST_BLOCK = 8  # tokens; what is left at the end of a corpus may be too short to say anything about a masked word


def corpus_files(source: str) -> list[Path]:
    """The files of a corpus in their order: the file itself, or all below a folder but hidden ones. UserError where there is none."""
    path = Path(source)
    if path.is_dir():
        files = [
            file
            for file in sorted(path.rglob("*"))
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        if not files:
            raise UserError(f"the folder holds no files; {WAY_OUT}", file=path)
        return files
    if not exists(path):
        raise UserError(f"there is no such file; {WAY_OUT}", file=path)
    return [path]


def corpus_digest(source: str) -> list[str]:
    """What identifies a corpus: the digests of its files, or the name of a hub set."""
    if not exists(Path(source)) and hub_name(source):
        return [source]
    return [sha256_of(file) for file in corpus_files(source)]


def read_documents(source: str, column: str = "text") -> Iterator[tuple[int, str]]:
    """(number of its document, text) for every line of a corpus, in order; a file is a document, and so is a row of a hub set.

    Args:
        source: a file, a folder, or a hub name, which is streamed.
        column: of a hub set, where its text is.

    Raises:
        UserError: naming a file that is empty, binary or not UTF-8, or a hub set without such a column.
    """
    hub = None if exists(Path(source)) else hub_name(source)
    if hub is None:
        for number, file in enumerate(corpus_files(source)):
            for text in _read_file(file):
                yield number, text
        return
    rows = hub_rows(source, hub, streaming=True)
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # a stream from the hub fails with whatever its HTTP library raises
            raise UserError(
                f"the stream broke off after row {number} ({type(error).__name__}: {first_line(error)}); run the same command again",
                file=source,
            ) from None
        if row is None:
            return
        text = row.values.get(column)
        if not isinstance(text, str):
            raise UserError(
                f"{row.place} has no text in column {column!r}; its columns are {', '.join(row.values)}",
                file=source,
                field="pretrain.text",
            )
        yield number, text
        number += 1


def _read_file(file: Path) -> Iterator[str]:
    """The lines of a text file; one longer than `LONGEST_PIECE` comes in parts. UserError if it is empty, binary or unreadable."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number, blank = 1, True
    try:
        with open(file, "rb") as stream:
            while chunk := stream.readline(LONGEST_PIECE):
                if number == 1:
                    for start, what in BINARY.items():
                        if chunk.startswith(start):
                            raise UserError(f"this is not text but {what}; or take it out of the corpus", file=file)
                if b"\0" in chunk:
                    raise UserError(
                        "this is not text but binary; take it out of the corpus", file=file, field=f"line {number}"
                    )
                text = decoder.decode(chunk)
                blank = blank and not text.strip()
                yield text
                number += chunk.endswith(b"\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise UserError(
            "this is not UTF-8; save it as UTF-8, or take it out of the corpus", file=file, field=f"line {number}"
        ) from None
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror}); check its permissions", file=file) from None
    if blank:
        raise UserError("the file is empty; take it out of the corpus, or give it text", file=file)


class Blocks(Sequence[Item]):
    """Blocks of up to `length` tokens, [CLS] text [SEP], cut from one long row of tokens that stays on disk.

    As in RoBERTa (Liu et al. 2019, section 4.2: full sentences) a block may cross documents, with a [SEP] between them.

    Args:
        tokens: [tokens of the corpus], a memory map.
        numbers: which blocks these are, in the row's own order.
    """

    def __init__(
        self, tokens: np.ndarray, length: int, tokenizer: WordPieceTokenizer, numbers: np.ndarray | None = None
    ):
        self.tokens, self.length, self.tokenizer = tokens, length, tokenizer
        body = length - 2
        if numbers is None:
            whole, rest = divmod(len(tokens), body)
            numbers = np.arange(whole + (rest + 2 >= SHORTEST_BLOCK))
        self.numbers = numbers

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, at: int) -> Item:
        number, body = int(self.numbers[at]), self.length - 2
        text = self.tokens[number * body : (number + 1) * body]
        ids = np.concatenate([[self.tokenizer.cls_id], text, [self.tokenizer.sep_id]]).astype(np.int64)
        return Item(ids, np.zeros(len(ids), np.int64), None)

    def split(self, count: int, seed: int) -> tuple[Blocks, Blocks]:
        """(all but `count` blocks, those), the same for the same seed, each in order."""
        held = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        rest = np.setdiff1d(np.arange(len(self)), held)
        return tuple(Blocks(self.tokens, self.length, self.tokenizer, self.numbers[part]) for part in (rest, held))


def write_corpus(
    source: str, tokenizer: WordPieceTokenizer, file: Path, options: Pretrain, on_step: OnStep = silent
) -> None:
    """Writes a corpus, or the part of it that the recipe's limit allows, as token ids to `file`, unless it is there whole from before.

    Raises:
        UserError: see `read_documents`; or the text does not fill two blocks.
    """
    if file.is_file():
        return
    partial = file.with_name(file.name + ".partial")
    body = options.length - 2
    pieces = read_documents(source, options.text)
    with open(partial, "wb") as stream:
        written = _write_tokens(pieces, tokenizer, stream, options.limit and options.limit * body, on_step)
    if written < 2 * body:
        raise UserError(
            f"its {written} tokens do not fill two blocks of {options.length}; give more text, or shorter blocks",
            file=source,
            field="pretrain.length",
        )
    os.replace(partial, file)


def open_corpus(file: Path, tokenizer: WordPieceTokenizer, options: Pretrain) -> Blocks:
    """The blocks of a corpus that `write_corpus` wrote with the same tokenizer."""
    return Blocks(np.memmap(file, id_type(tokenizer), mode="r"), options.length, tokenizer)


def id_type(tokenizer: WordPieceTokenizer) -> type:
    """The least type that holds a tokenizer's ids; a hub's corpus has thousands of millions of them."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def _write_tokens(
    pieces: Iterator[tuple[int, str]],
    tokenizer: WordPieceTokenizer,
    stream: IO[bytes],
    most: int | None,
    on_step: OnStep,
) -> int:
    """Writes the ids of all pieces to `stream`, a [SEP] between documents, until there are `most`. Returns how many there are."""
    written, done, last = 0, 0, None
    while most is None or written < most:
        some = list(islice(pieces, PIECES_AT_ONCE))
        if not some:
            break
        ids: list[int] = []
        for (document, _), found in zip(some, tokenizer.encode_ids([text for _, text in some])):
            if not found:
                continue
            if last not in (None, document):
                ids.append(tokenizer.sep_id)
            last = document
            ids += found
        if most is not None:
            ids = ids[: most - written]
        stream.write(np.asarray(ids, id_type(tokenizer)).tobytes())
        written, done = written + len(ids), done + len(some)
        # Nobody knows the end of a stream; the step after this one stands for it.
        on_step(f"tokenizing the corpus, {written / 1e6:.1f} M tokens", done, done + 1)
    on_step(f"tokenizing the corpus, {written / 1e6:.1f} M tokens", done, done)
    return written
