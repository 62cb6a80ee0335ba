"""The tokenizer of a checkpoint's folder gives the ids of transformers, and each refusal is one line that names why."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.model.tokenizer_files import read_tokenizer
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly
from tests.hugging_face import demo_texts, demo_vocabulary, save_tokenizer

ODD = (
    "é É ü ß ñ Å İ ı ǅ œ e\u0301 a\u0308 \u0301 漢 字 中文 ひら カ 한국 \U00020000 😀 👨\u200d👩\u200d👧 🇫🇷 "
    "\u2764\ufe0f \x00 \x01 \x7f \ufffd \u200b \u200d \u200e \u00ad \ufeff \u2028 \x85 \u00a0 \u3000 \t \n "
    "½ x² ٣ “ ” – … ## ##ing [SEP] [ ] don't a_b С Ω ς"
).split(" ")


def odd_texts(count: int) -> list[str]:
    """Returns texts of words, pieces of words and odd characters, some of them without spaces."""
    draw = random.Random(0)
    words = [word for text in demo_texts()[:200] for word in text.split()]
    texts = []
    for _ in range(count):
        parts = [draw.choice(ODD if draw.random() < 0.5 else words) for _ in range(draw.randint(1, 20))]
        texts.append("".join(part + draw.choice(["", " ", " "]) for part in parts))
    return texts


@pytest.mark.parametrize(
    ("kind", "lowercase", "options"),
    [
        ("Bert", True, {}),
        ("DistilBert", False, {}),
        ("Bert", True, {"strip_accents": False}),
        ("Bert", False, {"strip_accents": True, "tokenize_chinese_chars": False}),
    ],
)
def test_ids_equal_those_of_transformers(tmp_path, kind, lowercase, options):
    save_tokenizer(tmp_path, kind, lowercase, **options)
    texts = odd_texts(1000) + demo_texts()[:1000]
    theirs = getattr(import_quietly("transformers"), f"{kind}Tokenizer").from_pretrained(tmp_path)
    expected = theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ours = read_tokenizer(tmp_path)
    assert len(texts) == 2000 and ours.encode_ids(texts) == expected
    assert sum(len(set(ids)) for ids in expected) > 10_000  # not all unknown
    again = WordPieceTokenizer.from_vocab(write(tmp_path / "again.txt", ours.vocab), **ours.options())
    assert again.tokenizes_as(ours) and again.encode_ids(texts) == expected


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    save_tokenizer(tmp_path, "Bert", lowercase=False)
    return tmp_path


def edit(path: Path, *keys: str, value: Any) -> None:
    """Sets a nested entry of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    *before, last = keys
    inner = content
    for key in before:
        inner = inner[key]
    inner[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def test_vocab_txt_alone_works_and_keeps_its_bytes(folder):
    vocab = ("\n".join(demo_vocabulary(False))).encode()
    (folder / "tokenizer.json").unlink()
    write(folder / "vocab.txt", vocab)
    tokenizer = read_tokenizer(folder)
    assert not tokenizer.lowercase and tokenizer.vocab == vocab


def test_a_disagreement_is_settled_as_transformers_does_and_said(folder, capsys):
    read_tokenizer(folder)
    assert capsys.readouterr().err == ""
    edit(folder / "tokenizer_config.json", "do_lower_case", value=True)
    ours, theirs = read_tokenizer(folder), import_quietly("transformers").BertTokenizer.from_pretrained(folder)
    said = capsys.readouterr().err
    assert "tokenizer_config.json: do_lower_case: tokenizer.json says false; true is used" in said
    assert ours.encode_ids(["Café"])[0] == theirs("Café", add_special_tokens=False)["input_ids"]


def added(token: str, special: bool = False) -> list[dict[str, Any]]:
    return [{"id": 5000, "content": token, "special": special, "normalized": True}]


REFUSED = {
    "BPE": ("tokenizer.json", ("model", "type"), "BPE", "model: is BPE, not WordPiece"),
    "no basic tokenizer": ("tokenizer.json", ("normalizer",), None, "normalizer: is missing; only BERT's WordPiece"),
    "another normaliser": ("tokenizer.json", ("normalizer",), {"type": "NFC"}, "normalizer: is NFC, not"),
    "splits otherwise": ("tokenizer.json", ("pre_tokenizer",), {"type": "Whitespace"}, "pre_tokenizer: is Whitespace"),
    "text as it is": ("tokenizer.json", ("normalizer", "clean_text"), False, "normalizer.clean_text: is False"),
    "prefix": (
        "tokenizer.json",
        ("model", "continuing_subword_prefix"),
        "@@",
        "model.continuing_subword_prefix: is '@@'; only '##'",
    ),
    "unknown token": ("tokenizer.json", ("model", "unk_token"), "<unk>", "model.unk_token: is '<unk>'"),
    "long words": ("tokenizer.json", ("model", "max_input_chars_per_word"), 200, "max_input_chars_per_word: is 200"),
    "added token": ("tokenizer.json", ("added_tokens",), added("<user>"), "has the added token '<user>'"),
    "special token": ("tokenizer.json", ("added_tokens",), added("[A]", True), "has the added token '[A]'"),
    "a gap": ("tokenizer.json", ("model", "vocab", "[MASK]"), 9999, "the id 4 belongs to no token"),
    "twice": ("tokenizer.json", ("model", "vocab", "[MASK]"), 3, "an id belongs to two tokens"),
    "no number": ("tokenizer.json", ("model", "vocab", "[MASK]"), "4", "model.vocab: must be an object"),
    "a line end": ("tokenizer.json", ("model", "vocab"), {"a\nb": 0}, "cannot stand on a line"),
    "no special tokens": ("tokenizer.json", ("model", "vocab"), {"a": 0}, "has no [PAD], [UNK], [CLS], [SEP]"),
    "Japanese": (
        "tokenizer_config.json",
        ("tokenizer_class",),
        "BertJapaneseTokenizer",
        "tokenizer_class: is 'BertJapaneseTokenizer'; only BERT's WordPiece",
    ),
    "another start": ("tokenizer_config.json", ("cls_token",), "<s>", "cls_token: is '<s>'; only [CLS]"),
    "more special tokens": ("tokenizer_config.json", ("extra_special_tokens",), ["<e>"], "added token '<e>'"),
    "no boolean": ("tokenizer_config.json", ("do_lower_case",), "no", "do_lower_case: is 'no'"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_a_bundle_cannot_tokenize_is_refused_in_one_line(folder, fault):
    name, keys, value, words = REFUSED[fault]
    edit(folder / name, *keys, value=value)
    with pytest.raises(UserError) as error:
        read_tokenizer(folder)
    assert words in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_two_vocabularies_that_differ_are_refused(folder):
    tokens = list(demo_vocabulary(False))
    tokens[10], tokens[11] = tokens[11], tokens[10]
    write(folder / "vocab.txt", "\n".join(tokens).encode())
    with pytest.raises(UserError, match=r"tokenizer.json: the id 10 is .* here and .* in vocab.txt; remove"):
        read_tokenizer(folder)


def test_a_real_unigram_file_and_another_template_are_refused(folder):
    edit(folder / "tokenizer_config.json", "tokenizer_class", value="PreTrainedTokenizerFast")
    assert not read_tokenizer(folder).lowercase  # its template is BERT's
    edit(folder / "tokenizer.json", "post_processor", value=None)
    with pytest.raises(UserError, match="post_processor: puts nothing around two texts"):
        read_tokenizer(folder)
    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False)).save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="model: is Unigram, not WordPiece"):
        read_tokenizer(folder)
