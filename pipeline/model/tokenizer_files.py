"""Reads the tokenizer of a checkpoint's folder: `tokenizer.json`, `vocab.txt` and `tokenizer_config.json`.

transformers 5 writes `tokenizer.json` and no `vocab.txt`, older versions write both or only the latter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.data.tokenizer import MAX_WORD_CHARACTERS, REQUIRED_TOKENS, WordPieceTokenizer
from pipeline.model.weights import read_json
from pipeline.support.errors import UserError
from pipeline.support.progress import console

TOKENIZER_FILE = "tokenizer.json"
VOCAB_FILE = "vocab.txt"
CONFIG_FILE = "tokenizer_config.json"
# The tokens that a tokenizer may mark as special. What a text says is never special here.
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# Of these classes transformers makes the steps anew from tokenizer_config.json, whatever tokenizer.json says.
BERT_CLASSES = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast")
# These take the steps from tokenizer.json.
JSON_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Our options and their names in tokenizer_config.json.
OPTIONS = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}
# What else the steps of tokenizer.json may say, and the only value that BERT's tokenizer has.
FIXED: dict[str, dict[str, object]] = {
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": MAX_WORD_CHARACTERS,
    },
    "normalizer": {"type": "BertNormalizer", "clean_text": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
}
ONLY_WORDPIECE = "only BERT's WordPiece tokenizer is supported"


def read_tokenizer(folder: Path) -> WordPieceTokenizer:
    """Returns the tokenizer of a checkpoint's folder.

    Vocabulary and options are those of `tokenizer.json`, or of `vocab.txt` where there is no such file. An option that
    `tokenizer_config.json` states wins, as in transformers. Where that changes something, a line on the terminal says
    so.

    Raises:
        UserError: the tokenizer is not BERT's WordPiece, both vocabularies differ, an id has no token, there are added
            tokens, or a file is missing or broken.
    """
    json_file, vocab_file, config_file = folder / TOKENIZER_FILE, folder / VOCAB_FILE, folder / CONFIG_FILE
    config = read_json(config_file) if config_file.is_file() else {}
    kind = str(config.get("tokenizer_class") or BERT_CLASSES[0])
    if kind not in (*BERT_CLASSES, *JSON_CLASSES):
        raise UserError(f"is {kind!r}; {ONLY_WORDPIECE}", file=config_file, field="tokenizer_class")
    check_config(config, config_file)
    if not json_file.is_file():
        if not vocab_file.is_file():
            raise UserError(
                f"has neither {TOKENIZER_FILE} nor {VOCAB_FILE}; "
                "save the model's tokenizer into it with tokenizer.save_pretrained",
                file=folder,
            )
        return WordPieceTokenizer.from_vocab(vocab_file, **stated_options(config, config_file))
    content = read_json(json_file)
    check_steps(content, json_file)
    options = json_options(content, json_file)
    if kind in BERT_CLASSES:
        options = settle(options, stated_options(config, config_file), json_file, config_file)
    else:
        check_special_ids(json_file)
    tokens = json_tokens(content, json_file)
    if vocab_file.is_file():
        tokenizer = WordPieceTokenizer.from_vocab(vocab_file, **options)
        check_same(tokens, tokenizer.tokens, json_file)
        return tokenizer
    return WordPieceTokenizer(tokens, vocab=None, **options)


def vocabulary_file(folder: Path) -> Path:
    """Returns the file of a checkpoint's folder that holds its vocabulary."""
    return folder / (VOCAB_FILE if (folder / VOCAB_FILE).is_file() else TOKENIZER_FILE)


def check_config(config: Mapping[str, Any], file: Path) -> None:
    """Raises UserError for a `tokenizer_config.json` that asks for what BERT's tokenizer does not do."""
    if config.get("do_basic_tokenize") is False:
        raise UserError(
            f"is false; {ONLY_WORDPIECE}, which splits at punctuation", file=file, field="do_basic_tokenize"
        )
    if config.get("never_split"):
        raise UserError("names words; such exceptions are not supported", file=file, field="never_split")
    for name, token in SPECIAL_TOKENS.items():
        given = token_text(config.get(name) or token)
        if given != token:
            raise UserError(f"is {given!r}; only {token} is supported", file=file, field=name)
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    decoder = config.get("added_tokens_decoder")
    added = decoder.values() if isinstance(decoder, dict) else []
    check_added([*(more.values() if isinstance(more, dict) else more), *added], file)


def check_added(tokens: list[Any], file: Path) -> None:
    """Raises UserError for a token that was added to the five of BERT; it would be found in a text before all else."""
    for token in map(token_text, tokens):
        if token not in SPECIAL_TOKENS.values():
            raise UserError(
                f"has the added token {token!r}, and a bundle's tokenizer has no added tokens; "
                "give a model that was trained without them",
                file=file,
            )


def token_text(token: Any) -> str:
    """Returns the text of a token, which may also be written as an object with the field `content`."""
    return str(token.get("content") if isinstance(token, dict) else token)


def stated_options(config: Mapping[str, Any], file: Path) -> dict[str, bool]:
    """Returns the options that `tokenizer_config.json` states, by our names. Absent ones have BERT's defaults."""
    options = {}
    for name, theirs in OPTIONS.items():
        value = config.get(theirs)
        if value is None:
            continue
        if not isinstance(value, bool):
            raise UserError(f"is {value!r}; it must be true or false", file=file, field=theirs)
        options[name] = value
    return options


def check_steps(content: Mapping[str, Any], file: Path) -> None:
    """Raises UserError, naming the step and its field, unless `tokenizer.json` describes BERT's WordPiece."""
    for step, expected in FIXED.items():
        actual = content.get(step)
        if not isinstance(actual, dict):
            raise UserError(f"is missing; {ONLY_WORDPIECE}", file=file, field=step)
        for field, value in expected.items():
            found = actual.get(field, value)
            if field == "type" and found != value:
                raise UserError(f"is {found}, not {value}; {ONLY_WORDPIECE}", file=file, field=step)
            if found != value:
                raise UserError(f"is {found!r}; only {value!r} is supported", file=file, field=f"{step}.{field}")
    added = content.get("added_tokens") or []
    check_added(added if isinstance(added, list) else [added], file)


def json_options(content: Mapping[str, Any], file: Path) -> dict[str, bool]:
    """Returns the options of `tokenizer.json`, by our names."""
    options = {}
    for name in OPTIONS:
        value = content["normalizer"].get(name)
        if value is None and name == "strip_accents":
            continue  # it follows `lowercase`
        if not isinstance(value, bool):
            raise UserError(f"is {value!r}; it must be true or false", file=file, field=f"normalizer.{name}")
        options[name] = value
    return options


def settle(options: dict[str, bool], stated: Mapping[str, bool], json_file: Path, config_file: Path) -> dict[str, bool]:
    """Returns the options of `tokenizer.json`, replaced by those that `tokenizer_config.json` states.

    Says in one line where the two disagree.
    """
    settled, before = {**options, **stated}, effective(options)
    for name, value in effective(settled).items():
        if before[name] != value:
            console.print(
                f"  {config_file}: {OPTIONS[name]}: {json_file.name} says {str(before[name]).lower()}; "
                f"{str(value).lower()} is used, as transformers does",
                soft_wrap=True,
            )
    return settled


def effective(options: Mapping[str, bool]) -> dict[str, bool]:
    """Returns the value of every option, defaults included."""
    lowercase = options.get("lowercase", True)
    return {
        "lowercase": lowercase,
        "strip_accents": options.get("strip_accents", lowercase),
        "handle_chinese_chars": options.get("handle_chinese_chars", True),
    }


def json_tokens(content: Mapping[str, Any], file: Path) -> list[str]:
    """Returns the vocabulary of `tokenizer.json` in the order of its ids.

    Raises:
        UserError: an id has no token or several, a token cannot stand on a line of `vocab.txt`, or a token that BERT
            needs is missing.
    """
    vocab = content["model"].get("vocab")
    field = "model.vocab"
    if not isinstance(vocab, dict) or not all(type(number) is int for number in vocab.values()):
        raise UserError("must be an object with a number for each token", file=file, field=field)
    tokens = sorted(vocab, key=lambda token: int(vocab[token]))
    for number, token in enumerate(tokens):
        if vocab[token] != number:
            problem = f"the id {number} belongs to no token" if vocab[token] > number else "an id belongs to two tokens"
            raise UserError(f"{problem}; ids must count from 0 without a gap", file=file, field=field)
        if not token or "\n" in token or token.endswith("\r"):
            raise UserError(
                f"the token {token!r} (id {number}) cannot stand on a line of a bundle's vocabulary",
                file=file,
                field=field,
            )
    missing = [token for token in REQUIRED_TOKENS if token not in vocab]
    if missing:
        raise UserError(f"has no {', '.join(missing)}; give the tokenizer of a BERT", file=file, field=field)
    return tokens


def check_special_ids(file: Path) -> None:
    """Raises UserError unless `tokenizer.json` puts [CLS] and [SEP] around one text and around two, as BERT does."""
    try:
        encoded = Tokenizer.from_file(str(file)).encode("", "")
    except Exception as error:  # the library raises plain exceptions
        raise UserError(f"is no tokenizer that can be read ({error})", file=file) from None
    if encoded.tokens != ["[CLS]", "[SEP]", "[SEP]"]:
        raise UserError(
            f"puts {' '.join(encoded.tokens) or 'nothing'} around two texts; only [CLS] text [SEP] text [SEP] "
            "is supported",
            file=file,
            field="post_processor",
        )


def check_same(tokens: list[str], others: tuple[str, ...], file: Path) -> None:
    """Raises UserError where `tokenizer.json` and `vocab.txt` differ; names the first difference."""
    for number, token, other in numbered(tokens, others):
        if token != other:
            raise UserError(
                f"the id {number} is {token!r} here and {other!r} in {VOCAB_FILE}; "
                "remove the file that is not the model's",
                file=file,
            )


def numbered(tokens: list[str], others: tuple[str, ...]) -> Iterator[tuple[int, str | None, str | None]]:
    """Returns every id with its token in both vocabularies; None where one has ended."""
    for number in range(max(len(tokens), len(others))):
        yield (
            number,
            tokens[number] if number < len(tokens) else None,
            others[number] if number < len(others) else None,
        )
