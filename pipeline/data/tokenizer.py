"""BERT's WordPiece over one vocabulary file: text in, piece ids and their places in the text out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from pipeline.support.errors import UserError

REQUIRED_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LONGEST_WORD = 100  # characters; a longer word is one [UNK], as in BERT's WordpieceTokenizer

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TokenizedText:
    """One text as word pieces, without [CLS] and [SEP].

    Args:
        ids: piece ids, int64, [tokens].
        offsets: for each piece the (start, end) of its characters (code points) in the text as it was given.
    """

    ids: np.ndarray
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


class WordPieceTokenizer:
    """BERT's BasicTokenizer followed by greedy longest-match WordPiece (Devlin et al. 2019, google-research/bert).

    Text is only ever text: a "[SEP]" typed by a user is three pieces, `[`, `sep`, `]`, as in Google's tokenization.py,
    so that no input can forge the border between question and passage. (Hugging Face needs `split_special_tokens=True`
    for the same.)

    Args:
        tokens: the vocabulary in the order of its ids.
        lowercase: BERT uncased: lower case, and accents stripped with it.
    """

    def __init__(self, tokens: Sequence[str], lowercase: bool = True):
        self.tokens = tuple(tokens)
        self.lowercase = lowercase
        self._id_of = {token: index for index, token in enumerate(self.tokens)}
        self._tokenizer = Tokenizer(WordPiece(self._id_of, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD))
        self._tokenizer.normalizer = BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
        )
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    @classmethod
    def from_vocab(cls, path: str | Path, lowercase: bool = True) -> WordPieceTokenizer:
        """The tokenizer of a `vocab.txt`: one token a line, the line number less one is its id.

        Raises:
            UserError: the file is missing, unreadable, empty, not UTF-8, has an empty line or a token twice, or lacks
                one of [PAD], [UNK], [CLS], [SEP].
        """
        return cls(_read_vocab(Path(path)), lowercase)

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def pad_id(self) -> int:
        return self._id_of["[PAD]"]

    @property
    def unk_id(self) -> int:
        return self._id_of["[UNK]"]

    @property
    def cls_id(self) -> int:
        return self._id_of["[CLS]"]

    @property
    def sep_id(self) -> int:
        return self._id_of["[SEP]"]

    @property
    def mask_id(self) -> int | None:
        """None when the vocabulary has no [MASK]; only pre-training needs one."""
        return self._id_of.get("[MASK]")

    def encode(self, text: str) -> TokenizedText:
        """The pieces of one text, without special tokens; empty for a text of white space and control characters."""
        return _tokenized(self._tokenizer.encode(_encodable(text), add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str]) -> list[TokenizedText]:
        """`encode` for each text, spread over the cores."""
        encodings = self._tokenizer.encode_batch([_encodable(text) for text in texts], add_special_tokens=False)
        return [_tokenized(encoding) for encoding in encodings]

    def encode_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids that `encode` gives each text, without the offsets, which take longer than the ids."""
        encodings = self._tokenizer.encode_batch_fast([_encodable(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def _tokenized(encoding: Encoding) -> TokenizedText:
    return TokenizedText(np.asarray(encoding.ids, dtype=np.int64), encoding.offsets)


def _encodable(text: str) -> str:
    # Half a surrogate pair (JSON's "\ud83d" alone) cannot leave Python as UTF-8. U+FFFD is one character too, so the
    # offsets stand, and BERT's cleaning drops it.
    return _SURROGATE.sub("\ufffd", text)


def _read_vocab(path: Path) -> list[str]:
    way_out = "give the vocab.txt of a BERT, one token a line"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no such file; {way_out}", file=path) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a vocabulary; name the vocab.txt in it", file=path) from None
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror}); check its permissions", file=path) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"byte {error.start} is not UTF-8; save the vocabulary as UTF-8", file=path, field=f"line {line}"
        ) from None
    # Not splitlines(): U+0085 and U+2028 end a line for Python, and are tokens in multilingual vocabularies.
    tokens = [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")]
    if tokens == [""]:
        raise UserError(f"the vocabulary is empty; {way_out}", file=path)
    line_of: dict[str, int] = {}
    for line, token in enumerate(tokens, start=1):
        if not token:
            raise UserError(
                "the line is empty; a token stands on every line, since its number is its id",
                file=path,
                field=f"line {line}",
            )
        if token in line_of:
            raise UserError(
                f"{token!r} stands on line {line_of[token]} already; a token has one id, remove one of the two",
                file=path,
                field=f"line {line}",
            )
        line_of[token] = line
    missing = [token for token in REQUIRED_TOKENS if token not in line_of]
    if missing:
        raise UserError(f"the vocabulary has no {', '.join(missing)}; {way_out}", file=path)
    return tokens
