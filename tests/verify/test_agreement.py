"""The check counts the share of examples with the same answer, and fails if the share is too small."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.bundle.opening import Bundle
from pipeline.data.examples import ClassificationExample
from pipeline.data.features import encode_text
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.export.coreml import export_coreml
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.tasks import get_task
from pipeline.tasks.regression import SAME_SHARE
from pipeline.verify.agreement import check_agreement, check_coreml_labels
from pipeline.verify.floors import shown_share_floor


def logits_of_the_programs(tiny) -> list[torch.Tensor]:
    """Returns the logits of the quantized model in PyTorch at full depth."""
    bundle, logits = Bundle.open(tiny.path), []
    for example in tiny.examples:
        ids = encode_text(bundle.tokenizer, example.text, example.text_pair, bundle.manifest.max_length).ids
        outputs = tiny.programs(torch.from_numpy(np.asarray(ids, np.int64))[None], torch.zeros(1, 1, len(ids)))
        logits.append(outputs[-1][1][0])
    return logits


def labels_of_the_programs(tiny) -> list[int]:
    return [int(logits.argmax()) for logits in logits_of_the_programs(tiny)]


def test_the_bundle_gives_the_answers_of_the_quantized_model(tiny_classifier):
    check = check_agreement(
        Bundle.open(tiny_classifier.path), tiny_classifier.examples, labels_of_the_programs(tiny_classifier)
    )
    floor = shown_share_floor(get_task("classification").agreement_floor, len(tiny_classifier.examples))
    assert check.value == 1.0 and check.passed and check.floor == floor


def test_one_different_answer_among_a_few_may_be_a_near_tie_and_two_fail(tiny_classifier):
    """A run on 1,200 rows was refused for one near tie among 180."""
    expected = labels_of_the_programs(tiny_classifier)
    for index, passes in ((0, True), (5, False)):
        expected[index] = (expected[index] + 1) % 3
        check = check_agreement(Bundle.open(tiny_classifier.path), tiny_classifier.examples, expected)
        assert check.value < 1 and check.passed == passes


def test_numbers_agree_within_a_small_share_of_the_label_range(tiny_regressor):
    """With labels from -2 to 6, a difference of 0.1 is the same answer and one of 0.3 is not."""
    bundle = Bundle.open(tiny_regressor.path)
    expected = [-2 + 8 * float(logits) for logits in logits_of_the_programs(tiny_regressor)]
    check = check_agreement(bundle, tiny_regressor.examples, expected)
    assert (
        0.1 < 8 * SAME_SHARE < 0.3
        and check.value == 1.0
        and check.passed
        and check.floor == shown_share_floor(get_task("regression").agreement_floor, len(expected))
    )
    for index in (3, 4):
        expected[index] += 0.3
    check = check_agreement(bundle, tiny_regressor.examples, expected)
    assert check.value == 1 - 2 / len(expected) and not check.passed


@pytest.fixture(scope="module")
def packages(tmp_path_factory, tiny_classifier):
    """A model, and its Core ML packages for 8 and 16 tokens in what stands for a bundle."""
    torch.manual_seed(1)
    config = EncoderConfig(
        vocab_size=tiny_classifier.manifest.model.vocab_size,
        hidden_size=64,
        layers=2,
        heads=4,
        intermediate_size=128,
        max_positions=16,
    )
    model = ExitModel("classification", config, 3, "pooled", (1, 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    settings = {"max_length": 16, "coreml_buckets": [8, 16], "coreml_precision": "fp16"}
    path = tmp_path_factory.mktemp("packages")
    programs = export_coreml(
        model,
        path,
        Recipe.model_validate(
            {"name": "tiny", "task": "classification", "data": {"max_length": 16}, "export": settings}
        ),
    )
    manifest = tiny_classifier.manifest.model_copy(update={"programs": programs, "max_length": 16})
    tokenizer = WordPieceTokenizer.from_vocab(tiny_classifier.path / "vocab.txt", True)
    return model, SimpleNamespace(path=path, manifest=manifest, tokenizer=tokenizer)


def test_core_ml_gives_the_labels_of_float32_and_not_those_of_another_model(packages, tiny_classifier):
    model, bundle = packages
    check = check_coreml_labels(bundle, model, tiny_classifier.examples)
    assert check.passed and check.value == 1.0 and "24 dev examples" in check.program
    other = copy.deepcopy(model)
    with torch.no_grad():
        for part in (other.heads[-1].out.weight, other.heads[-1].out.bias):
            part.copy_(part.roll(1, 0))
    assert check_coreml_labels(bundle, other, tiny_classifier.examples).value == 0.0


def test_texts_that_fit_no_bucket_are_reported(packages, monkeypatch):
    model, bundle = packages
    texts = [ClassificationExample("ba " * 15, None, "0")]
    monkeypatch.setattr("pipeline.verify.agreement.bundle_buckets", lambda manifest, backend: [8])
    with pytest.raises(
        UserError, match="no example fits a Core ML bucket; add a longer bucket to export.coreml_buckets"
    ):
        check_coreml_labels(bundle, model, texts)
