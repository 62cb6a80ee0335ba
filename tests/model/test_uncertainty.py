"""The programs' uncertainty measures under masks, padding, ties and float16, and inside a segment."""

from __future__ import annotations

import pytest
import torch

from pipeline.export.executorch import export_program, structure_key
from pipeline.model.encoder import EncoderConfig, attention_bias
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.model.uncertainty import MEASURES, answer_bias
from pipeline.support.quiet import quiet_logging

CONFIG = EncoderConfig(vocab_size=50, hidden_size=32, layers=2, heads=2, intermediate_size=64, max_positions=24)
NAMES = pytest.mark.parametrize("name", MEASURES)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])


def logits_and_mask(length: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    start, end = 2 * torch.randn(2, 1, length, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[:, 4:9] = True
    return start, end, mask


@NAMES
def test_padding_and_tokens_outside_the_answer_mask_change_nothing(name):
    (start, end, mask), measure = logits_and_mask(), MEASURES[name].spans
    expected = measure(start[:, 4:9], end[:, 4:9], torch.zeros(1, 5))
    assert 0.1 < float(expected) < 0.95
    loud = torch.where(mask, start, torch.tensor(40.0))
    padded = [
        torch.cat([tensor, torch.full((1, 50), 9).to(tensor.dtype)], dim=1) for tensor in (loud, end, answer_bias(mask))
    ]
    padded[2][:, 12:] = -1e4
    torch.testing.assert_close(measure(*padded), expected)


@NAMES
@DTYPES
@pytest.mark.parametrize("candidates", [1, 2, 40])
def test_span_measures_range_from_0_to_1(name, dtype, candidates):
    mask = torch.zeros(1, 60, dtype=torch.bool)
    mask[:, 5 : 5 + candidates] = True
    bias, measure = answer_bias(mask).to(dtype), MEASURES[name].spans
    flat, peak = torch.full((1, 60), 3.0, dtype=dtype), torch.zeros(1, 60, dtype=dtype)
    peak[:, 5] = 60
    assert float(measure(flat, flat, bias)) == pytest.approx(0.0 if candidates == 1 else 1.0, abs=3e-3)
    assert float(measure(peak, peak, bias)) == pytest.approx(0.0, abs=1e-6)


@NAMES
@DTYPES
def test_label_measures_range_from_0_to_1(name, dtype):
    measure, tolerance = MEASURES[name].labels, 1e-6 if dtype is torch.float32 else 2e-3
    for classes in (2, 7):
        assert float(measure(torch.full((classes,), 3.5, dtype=dtype))) == pytest.approx(1.0, abs=tolerance)
        hopeless = torch.full((classes,), -1e4, dtype=dtype)
        hopeless[0] = 0
        assert float(measure(hopeless)) == 0.0


@DTYPES
def test_a_tie_of_the_two_largest_logits_gives_1(dtype):
    margin = MEASURES["margin"].labels
    logits = torch.tensor([[5.0, -3.0, 5.0], [5.0, 5.0, 5.0], [5.0, -3.0, 4.0]], dtype=dtype)
    greatest, second = torch.softmax(logits[2].float(), -1)[[0, 2]]
    values = margin(logits).float()
    assert values[0] == pytest.approx(1 - 0.0, abs=2e-3) and values[1] == pytest.approx(1.0, abs=2e-3)
    assert values[2] == pytest.approx(float(1 - greatest + second), abs=1e-6 if dtype is torch.float32 else 5e-3)


def test_the_margin_is_right_for_near_ties_and_a_rounded_maximum():
    margin = MEASURES["margin"].labels
    for gap in (0.0, 1e-4, 0.003, 0.009, 0.011, 0.1):
        first, second = torch.softmax(torch.tensor([4.0, 4.0 - gap, 1.0, -2.0]), -1)[:2]
        assert float(margin(torch.tensor([4.0, 4.0 - gap, 1.0, -2.0]))) == pytest.approx(
            float(1 - first + second), abs=1e-6
        )
    # Core ML's evaluator, for one, rounds the maximum to float16 while the logits are wider. Then no logit equals it.
    logits = torch.tensor([4.0, 1.0, -2.0])
    exact = float(margin(logits))
    original = torch.Tensor.amax
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "amax", lambda self, *args, **kwargs: original(self, *args, **kwargs) + 0.001)
        assert float(margin(logits)) == pytest.approx(exact, abs=3e-3)


@NAMES
@pytest.mark.parametrize("task", ["classification", "qa"])
@torch.no_grad()
def test_a_segment_measures_the_logits_divided_by_the_temperature(name, task):
    torch.manual_seed(0)
    model = ExitModel(task, CONFIG, 3, "fastbert", (1, 2)).eval()
    for parameter in model.heads.parameters():
        parameter.mul_(2 if parameter.ndim == 2 else 1)
    model.temperatures, model.uncertainty = [1.0, 0.4], name
    programs = Programs.of(model)
    assert programs.uncertainty == name
    ids, mask = torch.arange(5, 15)[None], torch.ones(1, 10)
    bias = answer_bias(torch.arange(10)[None] > 3)
    outputs = programs(ids, attention_bias(mask), bias if task == "qa" else None)

    def measured(logits: list[torch.Tensor]) -> torch.Tensor:
        return MEASURES[name].labels(*logits) if task == "classification" else MEASURES[name].spans(*logits, bias)

    for output, temperature in zip(outputs, model.temperatures):
        torch.testing.assert_close(output[-1], measured([logits / temperature for logits in output[1:-1]]))
    assert not torch.allclose(outputs[1][-1], measured(outputs[1][1:-1]))  # guards that the temperature has an effect


@pytest.mark.parametrize("name", ["max_probability", "margin"])
@pytest.mark.parametrize("task", ["classification", "qa"])
def test_segments_with_other_temperatures_have_the_same_structure(name, task):
    model = ExitModel(task, CONFIG, 3, "fastbert", (1, 2)).eval()
    model.temperatures, model.uncertainty = [1.0, 0.4], name
    programs = Programs.of(model)
    with quiet_logging():
        first, second = (structure_key(export_program(segment, programs, 24)) for segment in programs.segments)
    assert first == second
