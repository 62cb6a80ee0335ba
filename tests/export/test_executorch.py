"""The `.pte` computes what the eager programs compute that it was made from, in ExecuTorch's own runtime."""

from __future__ import annotations

import copy

import pytest
import torch

from pipeline.export.executorch import (
    Lowered,
    QueryKeyValue,
    export_executorch,
    export_monolith,
    export_program,
    lower,
    split_qkv,
    structure_key,
    with_weights,
    write_pte,
)
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr
from quantize.schemes import LINEAR_ARITHMETIC, apply_scheme

POSITIONS = 24
MAX_DELEGATES = 12


def exit_model(exit_layers=(1, 2), layers=2) -> ExitModel:
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=100, hidden_size=32, layers=layers, heads=2, intermediate_size=64, max_positions=POSITIONS
    )
    return ExitModel("classification", config, 3, "linear", exit_layers).eval()


def methods(path) -> dict:
    with quiet_stderr():
        program = import_quietly("executorch.runtime").Runtime.get().load_program(str(path))
        return {name: program.load_method(name) for name in program.method_names}


def plans_of(path) -> list:
    """Returns the execution plan of each method of a file: its operators and delegates."""
    file = import_quietly("executorch.exir._serialize._program").deserialize_pte_binary(path.read_bytes())
    return getattr(file, "program", file).execution_plan


@torch.no_grad()
def largest_difference(actual, expected) -> float:
    return max(float((value - right).abs().max()) for value, right in zip(actual, expected, strict=True))


@pytest.mark.parametrize("length", [2, 3, 17, None])
@pytest.mark.parametrize("bundle", ["tiny_classifier", "tiny_qa"])
def test_every_program_agrees_with_the_quantized_model_at_any_length(bundle, length, request):
    tiny = request.getfixturevalue(bundle)
    length = length or tiny.programs.embed.embeddings.position.num_embeddings
    loaded = methods(tiny.path / "model.pte")
    ids = torch.randint(5, 100, (1, length), generator=torch.Generator().manual_seed(length))
    extra = []
    if tiny.manifest.task == "qa":
        extra = [torch.zeros(1, length)]
        extra[0][:, : length // 2] = -1e4
    bias = torch.zeros(1, 1, length)
    hidden = tiny.programs.embed(ids)
    assert largest_difference(loaded["embed"].execute([ids]), [hidden]) < 1e-5
    # Each segment gets the eager model's hidden states, so that other int8 steps do not add up over the layers.
    for index, segment in enumerate(tiny.programs.segments):
        expected = segment(hidden, bias, *extra)
        actual = loaded[f"segment_{index}"].execute([hidden, bias, *extra])
        scale = float(expected[1].abs().max())
        assert largest_difference(actual[1:-1], expected[1:-1]) < 0.02 * scale
        assert largest_difference(actual[-1:], expected[-1:]) < 0.01
        assert float((actual[0] - expected[0]).norm() / expected[0].norm()) < 0.01
        hidden = expected[0]


@pytest.mark.parametrize("bundle", ["tiny_classifier", "tiny_qa"])
def test_the_manifest_describes_the_file(bundle, request):
    tiny = request.getfixturevalue(bundle)
    loaded = methods(tiny.path / "model.pte")
    assert sorted(program.method for program in tiny.manifest.programs) == sorted(loaded)
    longest = tiny.programs.embed.embeddings.position.num_embeddings
    for program in tiny.manifest.programs:
        meta = loaded[program.method].metadata
        sides = (
            (program.inputs, meta.num_inputs(), meta.input_tensor_meta),
            (program.outputs, meta.num_outputs(), meta.output_tensor_meta),
        )
        for tensors, count, tensor_meta in sides:
            assert len(tensors) == count
            for index, tensor in enumerate(tensors):
                # A file states the largest sizes.
                expected = [longest if size == "length" else size for size in tensor.shape]
                assert list(tensor_meta(index).sizes()) == expected, (program.name, tensor.name)
    assert [tensor.name for tensor in tiny.manifest.program("segment_0").outputs][-1] == "uncertainty"


def test_expensive_operators_are_delegated(tiny_qa):
    plans = plans_of(tiny_qa.path / "model.pte")
    outside = {operator.name for plan in plans for operator in plan.operators}
    assert not outside & {
        f"aten::{name}" for name in ("linear", "addmm", "mm", "bmm", "_softmax", "gelu", "tanh", "mul", "add")
    }
    assert not any(name.startswith("torchao::") for name in outside)
    assert all(len(plan.delegates) >= 1 for plan in plans)
    # With a partitioner that gives every linear layer a delegate, a classifier's segment would have 18.
    assert all(len(plan.delegates) <= MAX_DELEGATES for plan in plans)


def test_query_key_and_value_are_not_split_from_one_output(tiny_classifier):
    plans = plans_of(tiny_classifier.path / "model.pte")
    outside = {operator.name for plan in plans if plan.name != "embed" for operator in plan.operators}
    assert not outside & {"aten::split_with_sizes_copy", "aten::split_copy", "aten::slice_copy"}


@pytest.mark.parametrize("scheme", LINEAR_ARITHMETIC)
@torch.no_grad()
def test_separate_query_key_and_value_compute_the_fused_layer(scheme):
    programs = apply_scheme(Programs.of(exit_model()), scheme, "fp32")
    segment = programs.segments[0]
    inputs = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(4)), torch.zeros(1, 1, 9)
    apart = split_qkv(segment)
    assert largest_difference(apart(*inputs), segment(*inputs)) < 1e-6
    assert not isinstance(segment.layers[0].qkv, QueryKeyValue), "the given module was changed"
    assert isinstance(apart.layers[0].qkv, QueryKeyValue) == (scheme in ("fp32", "int8", "int4"))


@pytest.mark.parametrize(
    ("task", "measure"), [("classification", "max_probability"), ("classification", "margin"), ("qa", "margin")]
)
@torch.no_grad()
def test_other_measures_and_fastberts_head_compute_what_torch_does(tmp_path, task, measure):
    torch.manual_seed(3)
    config = EncoderConfig(
        vocab_size=100, hidden_size=32, layers=1, heads=2, intermediate_size=64, max_positions=POSITIONS
    )
    model = ExitModel(task, config, 3, "fastbert", (1,)).eval()
    model.uncertainty, model.temperatures = measure, [0.5]
    programs = Programs.of(model)
    with quiet_logging():
        edge = lower(export_program(programs.segments[0], programs, POSITIONS))
        write_pte({"segment": edge}, tmp_path / "segment.pte")
    loaded = methods(tmp_path / "segment.pte")["segment"]
    for length in (2, 15, POSITIONS):
        inputs = [
            torch.randn(1, length, 32, generator=torch.Generator().manual_seed(length)),
            torch.zeros(1, 1, length),
        ]
        if task == "qa":
            inputs.append(torch.zeros(1, length))
            inputs[2][:, : length // 2] = -1e4
        expected = programs.segments[0](*inputs)
        assert largest_difference(loaded.execute(inputs), expected) < 1e-5
        assert length == 2 or 0.05 < float(expected[-1]) < 0.999


def test_a_lowered_program_with_other_weights_equals_lowering_them(tmp_path):
    model = exit_model()
    model.temperatures = [1.0, 1.7]
    programs = Programs.of(model)
    with quiet_logging():
        first, second = (export_program(segment, programs, POSITIONS) for segment in programs.segments)
        assert structure_key(first) == structure_key(second)
        edge = lower(first)
        write_pte({"segment": with_weights(Lowered(first, edge), second.state_dict)}, tmp_path / "shared.pte")
        write_pte({"segment": lower(second)}, tmp_path / "lowered.pte")
        write_pte({"segment": edge}, tmp_path / "first.pte")
    contents = {name: (tmp_path / f"{name}.pte").read_bytes() for name in ("shared", "lowered", "first")}
    assert contents["shared"] == contents["lowered"] != contents["first"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.pte", "lowered.pte", "shared.pte"]

    changed = copy.copy(first)
    changed._state_dict = {name: tensor + 1 for name, tensor in first.state_dict.items()}
    with pytest.raises(RuntimeError, match="lowering changed the weight"):
        with_weights(Lowered(changed, edge), second.state_dict)


def test_segments_of_different_structure_have_different_keys():
    programs = Programs.of(exit_model(exit_layers=(1, 3, 4), layers=4))
    with quiet_logging():
        first, second, third = (
            structure_key(export_program(segment, programs, POSITIONS)) for segment in programs.segments
        )
    assert first == third != second


def test_export_reports_its_progress_and_prints_nothing(tmp_path, capfd):
    steps = []
    programs = Programs.of(exit_model(exit_layers=(1,), layers=1))
    entries = export_executorch(programs, tmp_path / "model.pte", POSITIONS, "fp32", lambda *step: steps.append(step))
    assert capfd.readouterr() == ("", "")
    assert [done for _, done, _ in steps] == [0, 1, 2, 3] and {total for _, _, total in steps} == {3}
    assert {entry.file for entry in entries} == {"model.pte"} and {entry.precision for entry in entries} == {"fp32"}
    ids = torch.tensor([[2, 9, 3]])
    hidden = methods(tmp_path / "model.pte")["embed"].execute([ids])[0]
    assert largest_difference([hidden], [programs.embed(ids)]) < 1e-5


def test_a_length_beyond_the_positions_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"export.max_length: 25 is longer than the model's 24 positions"):
        export_executorch(Programs.of(exit_model()), tmp_path / "model.pte", POSITIONS + 1, "fp32")


def test_the_exits_of_a_monolith_compute_what_the_segments_do(tmp_path):
    programs = Programs.of(exit_model())
    export_monolith(programs, tmp_path / "whole.pte", POSITIONS)
    program = methods(tmp_path / "whole.pte")["forward"]
    for length in (2, 11, POSITIONS):
        ids, bias = torch.randint(5, 100, (1, length)), torch.zeros(1, 1, length)
        bias[..., length // 2 :] = -1e4
        expected = [output for segment in programs(ids, bias) for output in segment[1:]]
        assert largest_difference(program.execute([ids, bias]), expected) < 1e-5
    with pytest.raises(UserError, match="longer than the model's 24 positions"):
        export_monolith(programs, tmp_path / "longer.pte", POSITIONS + 1)
