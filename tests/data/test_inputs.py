"""The arrays that the programs take."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.data.inputs import program_inputs
from pipeline.model.encoder import attention_bias
from pipeline.model.uncertainty import answer_bias


def test_the_arrays_equal_those_that_the_model_computes_from_masks():
    mask = np.array([True, False, False, True, True, False])
    inputs = program_inputs(np.array([2, 7, 3, 8, 9, 3], dtype=np.int32), mask)
    assert inputs.input_ids.dtype == np.int64 and inputs.input_ids.tolist() == [[2, 7, 3, 8, 9, 3]]
    torch.testing.assert_close(torch.from_numpy(inputs.attention_bias), attention_bias(torch.ones(1, 6)))
    torch.testing.assert_close(torch.from_numpy(inputs.answer_bias), answer_bias(torch.from_numpy(mask)[None]))


def test_a_classification_has_no_answer_bias():
    assert program_inputs(np.array([2, 3])).answer_bias is None
