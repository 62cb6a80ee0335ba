"""The share of examples with the same answer is counted right, and too small a share fails."""

import numpy as np
import torch

from pipeline.data.features import encode_text
from pipeline.runtime.bundle import Bundle
from pipeline.verify.agreement import CLOSE, FLOOR, check_agreement


def logits_of_the_programs(tiny) -> list[torch.Tensor]:
    """What the quantized model in PyTorch says at full depth."""
    bundle, logits = Bundle.open(tiny.path), []
    for example in tiny.examples:
        ids = encode_text(bundle.tokenizer, example.text, example.text_pair, bundle.manifest.max_length).ids
        outputs = tiny.programs(torch.from_numpy(np.asarray(ids, np.int64))[None], torch.zeros(1, 1, len(ids)))
        logits.append(outputs[-1][1][0])
    return logits


def labels_of_the_programs(tiny) -> list[int]:
    return [int(each.argmax()) for each in logits_of_the_programs(tiny)]


def test_the_bundle_answers_as_the_programs_do(tiny_classifier):
    check = check_agreement(Bundle.open(tiny_classifier.path), tiny_classifier.examples, labels_of_the_programs(tiny_classifier))
    assert check.value == 1.0 and check.passed and check.floor == FLOOR["classification"]


def test_one_other_answer_in_a_few_fails(tiny_classifier):
    expected = labels_of_the_programs(tiny_classifier)
    expected[0] = (expected[0] + 1) % 3
    check = check_agreement(Bundle.open(tiny_classifier.path), tiny_classifier.examples, expected)
    assert check.value == 1 - 1 / len(expected) and not check.passed


def test_numbers_agree_within_a_small_share_of_the_label_range(tiny_regressor):
    """Labels from -2 to 6: a difference of 0.1 is no other answer, one of 0.3 is."""
    bundle = Bundle.open(tiny_regressor.path)
    expected = [-2 + 8 * float(each) for each in logits_of_the_programs(tiny_regressor)]
    check = check_agreement(bundle, tiny_regressor.examples, expected)
    assert 0.1 < 8 * CLOSE < 0.3 and check.value == 1.0 and check.passed and check.floor == FLOOR["regression"]
    expected[3] += 0.3
    check = check_agreement(bundle, tiny_regressor.examples, expected)
    assert check.value == 1 - 1 / len(expected) and not check.passed
