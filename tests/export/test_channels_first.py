"""The channels-first programs compute the same as the others, with operators that suit the Neural Engine."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pipeline.export.channels_first import channels_first, to_channels_first, to_tokens_first
from pipeline.export.program_modules import program_modules
from pipeline.model.encoder import EncoderConfig, attention_bias
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.model.uncertainty import answer_bias
from pipeline.verify.evaluator.loading import load_package
from quantize.int8_inputs import layer_linears, reciprocals, set_rounding, with_int8_inputs
from tests.export.conversion import convert

CONFIG = EncoderConfig(vocab_size=100, hidden_size=64, layers=3, heads=4, intermediate_size=128, max_positions=64)
LENGTH = 20


def random_model(task: str, head: str, exit_layers: tuple[int, ...] = (1, 2, 3)) -> ExitModel:
    """A model whose weights and norms are far from their initial values, so that each of them matters."""
    torch.manual_seed(0)
    model = ExitModel(task, CONFIG, 1 if task == "regression" else 3, head, exit_layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize(
    ("task", "head"),
    [
        *(("classification", head) for head in ("pooled", "fastbert", "linear", "bert", "distilbert")),
        ("regression", "pooled"),
        *(("qa", head) for head in ("attention", "linear", "fastbert")),
    ],
)
def test_the_rewrite_computes_what_the_programs_compute(task, head):
    model = random_model(task, head)
    model.temperatures = [1.5, 0.7, 1.0]
    programs = Programs.of(model)
    rewritten = channels_first(programs)
    ids, mask = torch.randint(0, 100, (1, LENGTH)), (torch.arange(LENGTH) < 15)[None]
    bias, answers = attention_bias(mask), answer_bias(mask & (torch.arange(LENGTH) > 4))
    with torch.no_grad():
        expected = programs(ids, bias, answers)
        actual = rewritten(ids, bias.reshape(1, LENGTH, 1, 1), answers)
    for (hidden, *numbers), (rewritten_hidden, *rewritten_numbers) in zip(expected, actual, strict=True):
        torch.testing.assert_close(to_tokens_first(rewritten_hidden), hidden, atol=1e-5, rtol=1e-5)
        for number, rewritten_number in zip(numbers, rewritten_numbers, strict=True):
            torch.testing.assert_close(rewritten_number, number, atol=1e-5, rtol=1e-5)


def test_int8_inputs_are_the_same_in_both_layouts():
    programs = Programs.of(random_model("qa", "attention", (2, 3)))
    gains = {name: torch.rand(linear.in_features) * 4 + 2 for name, linear in layer_linears(programs).items()}
    programs = with_int8_inputs(programs, gains)
    rewritten = channels_first(programs)
    assert len(reciprocals(rewritten)) == 3 * 4
    ids, answers = torch.randint(0, 100, (1, LENGTH)), torch.zeros(1, LENGTH)
    with torch.no_grad():
        rounded = programs(ids, torch.zeros(1, 1, LENGTH), answers)[0][0]
        actual = rewritten(ids, torch.zeros(1, LENGTH, 1, 1), answers)[0][0]
        # Where sums have another order, a value may be rounded to the neighbouring step.
        assert float((to_tokens_first(actual) - rounded).norm()) < 0.03 * float(rounded.norm())
        expected = set_rounding(programs, "range")(ids, torch.zeros(1, 1, LENGTH), answers)[0][0]
        actual = set_rounding(rewritten, "range")(ids, torch.zeros(1, LENGTH, 1, 1), answers)[0][0]
    torch.testing.assert_close(to_tokens_first(actual), expected, atol=1e-4, rtol=1e-4)
    assert float((rounded - expected).norm()) > 0.001 * float(rounded.norm())


def test_changing_the_layout_and_back_changes_nothing():
    hidden = torch.randn(1, 5, 7)
    assert to_channels_first(hidden).shape == (1, 7, 1, 5)
    assert torch.equal(to_tokens_first(to_channels_first(hidden)), hidden)


def operators(model: ExitModel, folder) -> Counter:
    """Counts the operators of each kind in the saved package of the first segment."""
    package = folder / f"{model.exit_layers[0]}.mlpackage"
    convert(program_modules(model, "ane")[1], LENGTH, "iOS16", "fp16", package)
    return Counter(operation.op_type for operation in load_package(package).functions["main"].operations)


def test_a_layer_changes_its_layout_once(tmp_path):
    """The difference between a segment of two layers and one of one layer is a layer."""
    layer = operators(random_model("classification", "pooled", (2, 3)), tmp_path)
    layer.subtract(operators(random_model("classification", "pooled", (1, 3)), tmp_path))
    assert sum(layer[kind] for kind in ("reshape", "transpose", "squeeze", "expand_dims")) <= 2
    assert layer["conv"] == 6 and layer["einsum"] == 2 * CONFIG.heads
    assert layer["linear"] == layer["matmul"] == 0
