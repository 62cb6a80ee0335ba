"""The demo data are reproducible and clean, and methods that do not read cannot solve them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest

from pipeline.data.demo import classification, qa
from pipeline.data.squad_metric import f1
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

SPLITS = ("train", "dev")
_DIGEST = """
import hashlib
from pipeline.tasks import get_task
print(hashlib.sha256(repr([get_task(task).load_demo() for task in ("classification", "qa")]).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def reviews() -> dict[str, list[classification.StratifiedExample]]:
    return dict(zip(SPLITS, classification.generate_stratified()))


@pytest.fixture(scope="module")
def questions() -> dict[str, list]:
    return dict(zip(SPLITS, qa.generate()))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9'-]+", text.lower())


@pytest.mark.parametrize("task, train_size, dev_size", [("classification", 2400, 400), ("qa", 1200, 200)])
def test_load_demo_gives_the_promised_number_of_examples(task, train_size, dev_size):
    train, dev = get_task(task).load_demo()
    assert (len(train), len(dev)) == (train_size, dev_size)


def test_a_task_without_demo_data_says_so():
    with pytest.raises(UserError, match="demo: .*regression.*name a file"):
        get_task("regression").load_demo()


def test_every_process_gets_the_same_examples():
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1


@pytest.mark.parametrize("generate", [classification.generate, qa.generate])
def test_another_seed_gives_other_examples(generate):
    first, second = generate(1)[0], generate(2)[0]
    assert first == generate(1)[0]
    assert len(set(first) & set(second)) < len(first) / 10


# Classification


def test_no_review_occurs_twice(reviews):
    texts = [" ".join(_words(item.example.text)) for split in SPLITS for item in reviews[split]]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_balance_in_every_stratum(reviews, split):
    counts = Counter((item.stratum, item.example.label) for item in reviews[split])
    for stratum in classification.STRATA:
        assert counts[stratum, "negative"] == counts[stratum, "positive"] > 0


@pytest.mark.parametrize("split", SPLITS)
def test_easy_and_hard_reviews_are_both_there(reviews, split):
    easy = sum(item.stratum == "easy" for item in reviews[split]) / len(reviews[split])
    assert 0.4 <= easy <= 0.5


def test_reviews_are_clean_sentences_of_many_lengths(reviews):
    texts = [item.example.text for split in SPLITS for item in reviews[split]]
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) == 3 and 35 <= max(lengths) <= 50
    for text in texts:
        assert text[0].isupper() and text.endswith(".") and "  " not in text and not set("{}") & set(text), text
        assert not re.search(r"\ba [aeio]|\ban [^aeiou]|[.] [a-z]", text), text


def test_dev_joins_known_words_in_new_ways(reviews):
    adverbs = "really|truly|simply|plainly|genuinely|frankly|clearly|undeniably"
    opinion = re.compile(rf"\bthe (?!hall|van)(\w+) (?:was|were) (?:(?:{adverbs}) )?([a-z-]+)", re.IGNORECASE)
    pairs = {
        split: {pair for item in reviews[split] for pair in opinion.findall(item.example.text)} for split in SPLITS
    }
    known = {word for item in reviews["train"] for word in _words(item.example.text)}
    new = {pair for pair in pairs["dev"] - pairs["train"] if known.issuperset(pair)}
    assert len(new) >= 30
    assert not any(classification.is_held_out(*pair) for pair in pairs["train"])


class _BagOfWords:
    """A naive Bayes and a logistic regression on words and pairs of words, in numpy."""

    def __init__(self, texts: list[str], labels: np.ndarray):
        self.vocabulary: dict[str, int] = {}
        for text in texts:
            for term in self._terms(text):
                self.vocabulary.setdefault(term, len(self.vocabulary))
        rows = [self._row(text) for text in texts]
        counts = np.ones((2, len(self.vocabulary)))
        for row, label in zip(rows, labels):
            counts[int(label), row] += 1
        log_probabilities = np.log(counts / counts.sum(axis=1, keepdims=True))
        self.bayes = log_probabilities[1] - log_probabilities[0]
        self.regression = np.zeros(len(self.vocabulary))
        order = np.random.default_rng(0)
        for epoch in range(8):
            for index in order.permutation(len(rows)):
                row = rows[index]
                error = labels[index] - 1 / (1 + np.exp(-self.regression[row].sum()))
                self.regression[row] += 0.1 / (1 + epoch) * error

    @staticmethod
    def _terms(text: str) -> set[str]:
        words = _words(text)
        return {*words, *map(" ".join, zip(words, words[1:]))}

    def _row(self, text: str) -> np.ndarray:
        return np.array(
            sorted(self.vocabulary[term] for term in self._terms(text) if term in self.vocabulary), dtype=int
        )

    def correct(self, weights: np.ndarray, texts: list[str], labels: np.ndarray) -> np.ndarray:
        scores = np.array([weights[self._row(text)].sum() for text in texts])
        return (scores > 0) == labels


def test_a_bag_of_words_solves_the_easy_reviews_and_guesses_the_hard_ones(reviews):
    texts = {split: [item.example.text for item in reviews[split]] for split in SPLITS}
    labels = {split: np.array([item.example.label == "positive" for item in reviews[split]]) for split in SPLITS}
    easy = np.array([item.stratum == "easy" for item in reviews["dev"]])
    model = _BagOfWords(texts["train"], labels["train"])
    for weights in (model.bayes, model.regression):
        correct = model.correct(weights, texts["dev"], labels["dev"])
        assert correct.mean() <= 0.82
        assert correct[~easy].mean() <= 0.64
        # The baseline itself works: only the hard texts defeat it.
        assert correct[easy].mean() >= 0.85


def test_no_hard_stratum_gives_its_label_away(reviews):
    hard = {split: [item for item in reviews[split] if item.stratum != "easy"] for split in SPLITS}
    labels = {split: np.array([item.example.label == "positive" for item in hard[split]]) for split in SPLITS}
    texts = {split: [item.example.text for item in hard[split]] for split in SPLITS}
    model = _BagOfWords(texts["train"], labels["train"])
    for weights in (model.bayes, model.regression):
        assert model.correct(weights, texts["dev"], labels["dev"]).mean() <= 0.6


# Question answering


def test_answers_stand_at_their_positions(questions):
    for example in [*questions["train"], *questions["dev"]]:
        (answer,) = example.answers
        assert answer.text and answer.text == answer.text.strip()
        assert example.passage[answer.start : answer.start + len(answer.text)] == answer.text
        around = f" {example.passage} "[answer.start : answer.start + len(answer.text) + 2]
        assert not around[0].isalnum() and not around[-1].isalnum()


def test_questions_are_asked_once_and_have_their_own_ids(questions):
    examples = [*questions["train"], *questions["dev"]]
    assert len({example.id for example in examples}) == len(examples)
    assert len({(example.question, example.passage) for example in examples}) == len(examples)


def test_train_and_dev_share_no_passage(questions):
    train, dev = ({" ".join(_words(example.passage)) for example in questions[split]} for split in SPLITS)
    assert not train & dev


def test_passages_have_the_promised_length(questions):
    for example in [*questions["train"], *questions["dev"]]:
        assert 25 <= len(example.passage.split()) <= 90
        assert 2 <= len(_sentences(example.passage)) <= 5
        assert example.question.endswith("?") and not set("{}") & set(example.question + example.passage)


def test_one_passage_has_different_answers_to_different_questions(questions):
    answers = defaultdict(set)
    for example in questions["train"]:
        answers[example.passage].add(example.answers[0].text)
    assert np.mean([len(texts) > 1 for texts in answers.values()]) > 0.9


def test_every_number_in_an_answer_has_a_rival_of_its_kind(questions):
    """There are two prices, years or times, so the kind of question alone does not tell the answer."""
    numeric = 0
    for example in [*questions["train"], *questions["dev"]]:
        kinds = Counter(re.sub(r"\d+", "0", span) for span in set(re.findall(_NUMBER, example.passage)))
        kind = re.sub(r"\d+", "0", example.answers[0].text)
        if "0" in kind:
            numeric += 1
            assert kinds[kind] >= 2, example
    assert numeric >= 300


def test_no_question_can_be_answered_by_a_word_of_its_own(questions):
    for example in [*questions["train"], *questions["dev"]]:
        assert not set(_words(example.answers[0].text)) <= set(_words(example.question)), example


def test_unanswerable_questions_replace_some_and_leave_the_rest(questions):
    for plain, mixed in zip(questions.values(), qa.generate(unanswerable=0.1)):
        changed = [new for old, new in zip(plain, mixed) if new != old]
        assert len(changed) == round(0.1 * len(plain))
        assert all(example.answers == () for example in changed)
        assert [example.id for example in mixed] == [example.id for example in plain]
        assert len({(example.question, example.passage) for example in mixed}) == len(mixed)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_0_and_1_is_refused(share):
    with pytest.raises(ValueError, match="unanswerable"):
        qa.generate(unanswerable=share)


def _sentences(passage: str) -> list[str]:
    return re.split(r"(?<=[.]) ", passage)


_UNITS = "euros|minutes|metres|points|pounds|people|pages|kilos|men"
_NUMBER = rf"(?:platform )?\d[\d:]*(?: (?:{_UNITS}))?"
_NAME = r"[A-Z][\w']*(?: [A-Z][\w']*)*"


def _candidates(text: str, question: str, pattern: str = f"{_NUMBER}|{_NAME}") -> list[str]:
    """Returns the names and numbers in a text that the question does not contain."""
    text = re.sub(r"(?:^|(?<=[.] ))(?:The|It|She|He|On|A|Its|Their|Some|Several|Another) ", "", text)
    asked = set(_words(question))
    return [span for span in re.findall(pattern, text) if not asked & set(_words(span))]


def _first(example) -> str:
    return next(iter(_candidates(example.passage, "")), "")


def _most_frequent(example) -> str:
    return Counter(_candidates(example.passage, "")).most_common(1)[0][0]


def _first_of_its_type(example) -> str:
    """Looks only at the kind of question."""
    question = example.question
    if re.search(r"^When|year|time\b|How|price|length|weight|size|total", question):
        pattern = _NUMBER
    else:
        pattern = _NAME
    return next(iter(_candidates(example.passage, question, pattern)), "")


def _most_overlap(example) -> str:
    asked = set(_words(example.question))
    sentence = max(_sentences(example.passage), key=lambda sentence: len(asked & set(_words(sentence))))
    return next(iter(_candidates(sentence, example.question)), "")


@pytest.mark.parametrize("baseline", [_first, _most_frequent, _first_of_its_type, _most_overlap])
def test_no_baseline_answers_without_reading(questions, baseline):
    examples = [*questions["train"], *questions["dev"]]
    score = np.mean([f1(baseline(example), [answer.text for answer in example.answers]) for example in examples])
    assert score < 0.6
    # The baseline itself works: it finds some answers.
    assert score > 0.03
