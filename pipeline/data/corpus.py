"""Plain text for pre-training: streamed from its source, kept on disk as one row of token ids, read in blocks."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, overload

import numpy as np

from pipeline.data.content import binary_form, exists
from pipeline.data.hub import hub_name, hub_rows
from pipeline.data.items import Item
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.support.digests import sha256_of
from pipeline.support.errors import UserError, first_line
from pipeline.support.progress import OnStep, silent

WAY_OUT = 'give a text file in UTF-8, a folder of such files, or a hub set as "owner/name:split"'
MAX_PIECE_BYTES = 1 << 20  # a file may be a single long line
PIECES_AT_ONCE = 256
MIN_BLOCK_TOKENS = 8  # a shorter rest of a corpus says too little about a masked word


class CorpusOptions(Protocol):
    """What a recipe says about its corpus (`pipeline.recipe.Pretrain`).

    Attributes:
        text: the column of the text if the corpus is a hub set.
        limit: maximum number of blocks to read, None for all.
        length: tokens of a block.
    """

    @property
    def text(self) -> str: ...

    @property
    def limit(self) -> int | None: ...

    @property
    def length(self) -> int: ...


def corpus_files(source: str) -> list[Path]:
    """Returns the files of a corpus in order: the file itself, or all files below a folder except hidden ones.

    Raises:
        UserError: there are none.
    """
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
    """Returns what identifies a corpus: the digests of its files, or the name of a hub set."""
    if not exists(Path(source)) and hub_name(source):
        return [source]
    return [sha256_of(file) for file in corpus_files(source)]


def read_documents(source: str, column: str = "text") -> Iterator[tuple[int, str]]:
    """Yields (number of the document, text) for every line of a corpus, in order.

    A file is a document, and so is a row of a hub set.

    Args:
        source: a file, a folder, or the name of a hub set, which is streamed.
        column: the column of a hub set that holds the text.

    Raises:
        UserError: a file is empty, binary or not UTF-8, or a hub set has no such column.
    """
    hub = None if exists(Path(source)) else hub_name(source)
    if hub is None:
        for number, file in enumerate(corpus_files(source)):
            for piece in _read_file(file):
                yield number, piece
        return
    rows = hub_rows(source, hub, streaming=True)
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # a stream from the hub raises the errors of its HTTP library
            raise UserError(
                f"the stream broke off after row {number} ({type(error).__name__}: {first_line(error)}); "
                "run the same command again",
                file=source,
            ) from None
        if row is None:
            return
        text = row.values.get(column)
        if not isinstance(text, str):
            raise UserError(
                f"{row.place} has no text in column {column!r}; set it to one of: {', '.join(row.values)}",
                file=source,
                field="pretrain.text",
            )
        yield number, text
        number += 1


def _read_file(file: Path) -> Iterator[str]:
    """Yields the lines of a text file; a line longer than `MAX_PIECE_BYTES` comes in parts."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number, blank = 1, True
    try:
        with open(file, "rb") as stream:
            while piece := stream.readline(MAX_PIECE_BYTES):
                form = binary_form(piece) if number == 1 else None
                if form is not None:
                    raise UserError(f"this is not text but {form}; or take it out of the corpus", file=file)
                if b"\0" in piece:
                    raise UserError(
                        "this is not text but binary; take it out of the corpus", file=file, field=f"line {number}"
                    )
                text = decoder.decode(piece)
                blank = blank and not text.strip()
                yield text
                number += piece.endswith(b"\n")
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

    A block may cross documents, with a [SEP] between them: "full sentences" in RoBERTa (Liu et al. 2019, section 4.2).

    Args:
        tokens: the token ids of the corpus, [tokens], a memory map.
        length: tokens of a block, [CLS] and [SEP] included.
        tokenizer: the tokenizer that made the ids.
        numbers: the blocks to take, as positions in the row; all blocks if None.
    """

    def __init__(
        self,
        tokens: np.ndarray[Any, Any],
        length: int,
        tokenizer: WordPieceTokenizer,
        numbers: np.ndarray[Any, Any] | None = None,
    ):
        self.tokens, self.length, self.tokenizer = tokens, length, tokenizer
        body = length - 2
        if numbers is None:
            whole, rest = divmod(len(tokens), body)
            numbers = np.arange(whole + (rest + 2 >= MIN_BLOCK_TOKENS))
        self.numbers = numbers

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Blocks: ...

    def __getitem__(self, index: int | slice) -> Item | Blocks:
        if isinstance(index, slice):
            return Blocks(self.tokens, self.length, self.tokenizer, self.numbers[index])
        number, body = int(self.numbers[index]), self.length - 2
        text = self.tokens[number * body : (number + 1) * body]
        ids = np.concatenate([[self.tokenizer.cls_id], text, [self.tokenizer.sep_id]]).astype(np.int64)
        return Item(ids, np.zeros(len(ids), np.int64), None)

    def split(self, count: int, seed: int) -> tuple[Blocks, Blocks]:
        """Returns (the other blocks, `count` random blocks), both in order. The same seed gives the same split."""
        held_out = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        rest = np.setdiff1d(np.arange(len(self)), held_out)
        return (
            Blocks(self.tokens, self.length, self.tokenizer, self.numbers[rest]),
            Blocks(self.tokens, self.length, self.tokenizer, self.numbers[held_out]),
        )


def write_corpus(
    source: str, tokenizer: WordPieceTokenizer, file: Path, options: CorpusOptions, on_step: OnStep = silent
) -> None:
    """Writes the token ids of a corpus to `file`, up to the recipe's limit, unless the file is there already.

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


def open_corpus(file: Path, tokenizer: WordPieceTokenizer, options: CorpusOptions) -> Blocks:
    """Returns the blocks of a corpus that `write_corpus` wrote with the same tokenizer."""
    return Blocks(np.memmap(file, id_type(tokenizer), mode="r"), options.length, tokenizer)


def id_type(tokenizer: WordPieceTokenizer) -> type[np.uint16] | type[np.uint32]:
    """Returns the smallest type that holds a tokenizer's ids: a hub's corpus has billions of them."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def _write_tokens(
    pieces: Iterator[tuple[int, str]],
    tokenizer: WordPieceTokenizer,
    stream: IO[bytes],
    max_tokens: int | None,
    on_step: OnStep,
) -> int:
    """Writes the ids of the pieces, with a [SEP] between documents. Returns the number of ids, at most `max_tokens`."""
    written, done = 0, 0
    last_document: int | None = None
    while max_tokens is None or written < max_tokens:
        batch = list(islice(pieces, PIECES_AT_ONCE))
        if not batch:
            break
        ids: list[int] = []
        for (document, _), piece_ids in zip(batch, tokenizer.encode_ids([text for _, text in batch])):
            if not piece_ids:
                continue
            if last_document not in (None, document):
                ids.append(tokenizer.sep_id)
            last_document = document
            ids += piece_ids
        if max_tokens is not None:
            ids = ids[: max_tokens - written]
        stream.write(np.asarray(ids, id_type(tokenizer)).tobytes())
        written, done = written + len(ids), done + len(batch)
        # The end of a stream is unknown, so the total is always one step more.
        on_step(f"tokenizing the corpus, {written / 1e6:.1f} M tokens", done, done + 1)
    on_step(f"tokenizing the corpus, {written / 1e6:.1f} M tokens", done, done)
    return written
