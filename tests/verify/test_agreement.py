"""The share of examples with the same answer is counted right, and too small a share fails."""

import numpy as np
import torch

from pipeline.data.features import encode_text
from pipeline.runtime.bundle import Bundle
from pipeline.verify.agreement import FLOOR, check_agreement


def labels_of_the_programs(tiny) -> list[int]:
    """What the quantized model in PyTorch says at full depth."""
    bundle, labels = Bundle.open(tiny.path), []
    for example in tiny.examples:
        ids = encode_text(bundle.tokenizer, example.text, example.text_pair, bundle.manifest.max_length).ids
        outputs = tiny.programs(torch.from_numpy(np.asarray(ids, np.int64))[None], torch.zeros(1, 1, len(ids)))
        labels.append(int(outputs[-1][1].argmax()))
    return labels


def test_the_bundle_answers_as_the_programs_do(tiny_classifier):
    check = check_agreement(Bundle.open(tiny_classifier.path), tiny_classifier.examples, labels_of_the_programs(tiny_classifier))
    assert check.value == 1.0 and check.passed and check.floor == FLOOR["classification"]


def test_one_other_answer_in_a_few_fails(tiny_classifier):
    expected = labels_of_the_programs(tiny_classifier)
    expected[0] = (expected[0] + 1) % 3
    check = check_agreement(Bundle.open(tiny_classifier.path), tiny_classifier.examples, expected)
    assert check.value == 1 - 1 / len(expected) and not check.passed
