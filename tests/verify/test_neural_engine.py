"""Operators that are known to fall off the Neural Engine are named; exported programs have only the lookup."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline.export.program_modules import program_modules
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr
from pipeline.verify.evaluator.loading import load_package
from pipeline.verify.neural_engine import REASONS, by_reason, find_sizes, lint
from quantize.int8_inputs import layer_linears
from tests.export.conversion import convert


def saved(program, path, precision: str):
    ct = import_quietly("coremltools")
    with quiet_stderr(), quiet_logging():
        precision = getattr(ct.precision, precision)
        model = ct.convert(
            program, minimum_deployment_target=ct.target.iOS17, compute_precision=precision, skip_model_load=True
        )
        model.save(str(path))
    return load_package(path)


def test_every_reason_is_named_with_its_operator(tmp_path):
    import_quietly("coremltools")
    from coremltools.converters.mil.mil import Builder, types

    specs = [Builder.TensorSpec((1, 8)), Builder.TensorSpec((1, 4), dtype=types.int32)]

    @Builder.program(input_specs=specs)
    def program(x, ids):
        mask = np.array([[0.0] * 7 + [-1e9]], dtype=np.float32)
        masked = Builder.add(x=x, y=mask, name="masked")
        rows = Builder.gather(x=np.ones((20000, 8), np.float32), indices=ids, axis=0, name="rows")
        wide = Builder.linear(x=masked, weight=np.ones((17000, 8), np.float32), name="wide")
        scattered = Builder.scatter(
            data=rows, indices=np.array([0]), updates=np.ones((1, 4, 8), np.float32), axis=0, name="scattered"
        )
        # Infinite bounds of a clip are harmless, whatever the precision.
        return Builder.clip(x=masked, alpha=np.float32(0.0), beta=np.float32(3e38), name="clipped"), wide, scattered

    warnings = lint(saved(program, tmp_path / "bad.mlpackage", "FLOAT32"))
    named = {(warning.operator, warning.name, warning.reason) for warning in warnings}
    assert {("add", "masked", "float32"), ("gather", "rows", "gather")} <= named
    assert {("scatter", "scattered", "operator"), ("linear", "wide", "dimension")} <= named
    masks = [warning for warning in warnings if warning.reason == "mask"]
    assert len(masks) == 1 and masks[0].operator == "const" and masks[0].detail == "holds -1e+09"
    # The table already has the warning about the lookup.
    assert not any(warning.operator == "gather" and warning.reason == "dimension" for warning in warnings)
    assert list(by_reason(warnings)) == ["dimension", "gather", "operator", "float32", "mask"]
    for warning in warnings:
        fields = warning.model_dump(mode="json")
        assert (warning.package, warning.function) == ("bad.mlpackage", "main")
        assert fields["text"] == REASONS[warning.reason].text and "http" in fields["source"]
    json.dumps([warning.model_dump(mode="json") for warning in warnings])


def test_a_flexible_shape_and_a_high_rank_are_named(tmp_path):
    ct = import_quietly("coremltools")

    class Double(torch.nn.Module):
        def forward(self, x):
            return x + x

    with quiet_stderr(), quiet_logging():
        traced = torch.jit.trace(Double(), torch.zeros(1, 3))
        shape = (1, ct.RangeDim(2, 32, default=3))
        ct.convert(
            traced, inputs=[ct.TensorType("x", shape)], minimum_deployment_target=ct.target.iOS17, skip_model_load=True
        ).save(str(tmp_path / "flexible.mlpackage"))
    package = load_package(tmp_path / "flexible.mlpackage")
    (warning,) = lint(package)
    assert (warning.operator, warning.name, warning.reason, warning.detail) == ("input", "x", "flexible", "shape 1xany")
    # coremltools does not load an operator with a result of rank 6, but it loads such an input.
    assert [finding.reason for finding in find_sizes("input", "x", (1,) * 6)] == ["rank"]
    assert list(find_sizes("input", "x", (16384, 1, 1, 1, 1))) == []


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_exported_programs_have_only_the_lookup(tmp_path, precision):
    torch.manual_seed(0)
    config = EncoderConfig(vocab_size=17000, hidden_size=64, layers=1, heads=4, intermediate_size=128, max_positions=16)
    for program in program_modules(ExitModel("qa", config, 2, "attention", [1]).eval()):
        convert(program, 16, "iOS18", precision, tmp_path / f"{program.name}.mlpackage")
        warnings = lint(load_package(tmp_path / f"{program.name}.mlpackage"))
        assert [(warning.reason, warning.detail) for warning in warnings] == (
            [("gather", "a table of 17000x64")] if program.name == "embed" else []
        )


def test_every_rounding_of_activations_is_named_with_the_chips_that_it_suits(tmp_path):
    config = EncoderConfig(vocab_size=100, hidden_size=64, layers=1, heads=4, intermediate_size=128, max_positions=16)
    model = ExitModel("qa", config, 2, "attention", [1]).eval()
    gains = {name: torch.ones(linear.in_features) for name, linear in layer_linears(Programs.of(model)).items()}
    convert(program_modules(model, input_gains=gains)[1], 16, "iOS17", "int8-a8", tmp_path / "segment_0.mlpackage")
    warnings = lint(load_package(tmp_path / "segment_0.mlpackage"))
    sizes = (64, 64, 64, 128)  # the inputs of qkv, attention_out, ffn_in, ffn_out
    assert [(warning.operator, warning.reason, warning.detail) for warning in warnings] == [
        ("quantize", "int8", f"1x16x{size} to int8") for size in sizes
    ]
    fields = warnings[0].model_dump(mode="json")
    assert "A17 Pro" in fields["text"] and fields["source"].startswith("https://apple.github.io/coremltools")
