"""BERT's WordPiece tokenizer: turns text into token ids and the positions of the tokens in the text."""

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
MAX_WORD_CHARACTERS = 100  # a longer word becomes one [UNK], as in BERT's WordpieceTokenizer
WAY_OUT = "give the vocab.txt of a BERT, one token a line"

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of one text, without [CLS] and [SEP].

    Attributes:
        ids: token ids, int64, [tokens].
        offsets: (start, end) of each token's characters (code points) in the original text.
    """

    ids: np.ndarray
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


class WordPieceTokenizer:
    """BERT's BasicTokenizer followed by greedy longest-match WordPiece (Devlin et al. 2019, google-research/bert).

    A special token in the text is ordinary text: "[SEP]" becomes the three tokens `[`, `sep`, `]`, as in Google's
    tokenization.py. So no input can forge the border between question and passage. Hugging Face does the same with
    `split_special_tokens=True`.

    Args:
        tokens: the vocabulary in the order of its ids.
        lowercase: whether to lower the case, as BERT uncased does.
        strip_accents: whether to drop accents; None: where the case is lowered.
        handle_chinese_chars: whether every Chinese character is a word of its own.
        vocab: the content of the `vocab.txt` that the tokens were read from; None: it is written from the tokens.

    Attributes:
        vocab: the content of its `vocab.txt`.
        strip_accents: as given, but None where it is what `lowercase` says anyway.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        lowercase: bool = True,
        strip_accents: bool | None = None,
        handle_chinese_chars: bool = True,
        vocab: bytes | None = None,
    ):
        self.tokens = tuple(tokens)
        self.lowercase = lowercase
        self.strip_accents = None if strip_accents == lowercase else strip_accents
        self.handle_chinese_chars = handle_chinese_chars
        self.vocab = ("\n".join(self.tokens) + "\n").encode("utf-8") if vocab is None else vocab
        self._id_of = {token: index for index, token in enumerate(self.tokens)}
        self._tokenizer = Tokenizer(
            WordPiece(self._id_of, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARACTERS)
        )
        self._tokenizer.normalizer = BertNormalizer(
            clean_text=True,
            handle_chinese_chars=handle_chinese_chars,
            strip_accents=lowercase if self.strip_accents is None else self.strip_accents,
            lowercase=lowercase,
        )
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    @classmethod
    def from_vocab(
        cls,
        path: str | Path,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        handle_chinese_chars: bool = True,
    ) -> WordPieceTokenizer:
        """Returns the tokenizer of a `vocab.txt`, which has one token a line; the first token has the id 0.

        The options are those of the class.

        Raises:
            UserError: the file is missing, unreadable, empty or not UTF-8, has an empty line or a token twice, or lacks
                one of [PAD], [UNK], [CLS], [SEP].
        """
        content = _read_file(Path(path))
        tokens = _read_vocab(content, Path(path))
        return cls(tokens, lowercase, strip_accents, handle_chinese_chars, content)

    def tokenizes_as(self, other: WordPieceTokenizer) -> bool:
        """Returns whether both give every text the same ids."""
        return self.tokens == other.tokens and self.options() == other.options()

    def options(self) -> dict[str, bool]:
        """Returns the options that the constructor takes, by name: `lowercase`, and others that are not the default."""
        options = {"lowercase": self.lowercase}
        if self.strip_accents is not None:
            options["strip_accents"] = self.strip_accents
        if not self.handle_chinese_chars:
            options["handle_chinese_chars"] = False
        return options

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
        """The id of [MASK], None if the vocabulary has none; only pre-training needs it."""
        return self._id_of.get("[MASK]")

    def encode(self, text: str) -> TokenizedText:
        """Returns the tokens of one text. A text of white space and control characters has none."""
        return _tokenized(self._tokenizer.encode(_encodable(text), add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Returns the tokens of each text, see `encode`; uses all cores."""
        encodings = self._tokenizer.encode_batch([_encodable(text) for text in texts], add_special_tokens=False)
        return [_tokenized(encoding) for encoding in encodings]

    def encode_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text. This is faster than `encode_batch`, which also computes offsets."""
        encodings = self._tokenizer.encode_batch_fast([_encodable(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def _tokenized(encoding: Encoding) -> TokenizedText:
    return TokenizedText(np.asarray(encoding.ids, dtype=np.int64), encoding.offsets)


def _encodable(text: str) -> str:
    # Half a surrogate pair, such as JSON's "\ud83d" alone, cannot be encoded as UTF-8. U+FFFD also is one character, so
    # offsets stay right, and BERT's text cleaning drops it.
    return _SURROGATE.sub("\ufffd", text)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no such file; {WAY_OUT}", file=path) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a vocabulary; name the vocab.txt in it", file=path) from None
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror}); check its permissions", file=path) from None


def _read_vocab(content: bytes, path: Path) -> list[str]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"byte {error.start} is not UTF-8; save the vocabulary as UTF-8", file=path, field=f"line {line}"
        ) from None
    # Not splitlines(): it also splits at U+0085 and U+2028, which are tokens in multilingual vocabularies.
    tokens = [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")]
    if tokens == [""]:
        raise UserError(f"the vocabulary is empty; {WAY_OUT}", file=path)
    line_of: dict[str, int] = {}
    for line, token in enumerate(tokens, start=1):
        if not token:
            raise UserError(
                "the line is empty; put a token on every line, since the line number is the token's id",
                file=path,
                field=f"line {line}",
            )
        if token in line_of:
            raise UserError(
                f"{token!r} stands on line {line_of[token]} already; remove one of the two, since a token has one id",
                file=path,
                field=f"line {line}",
            )
        line_of[token] = line
    missing = [token for token in REQUIRED_TOKENS if token not in line_of]
    if missing:
        raise UserError(f"the vocabulary has no {', '.join(missing)}; {WAY_OUT}", file=path)
    return tokens
