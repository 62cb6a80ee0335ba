"""The evaluator computes what torch computes, shows what float16 breaks, and refuses what it does not know."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.bundle import manifest
from pipeline.export.program_modules import ProgramModule, program_modules
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr
from pipeline.verify.comparison import signal_to_noise_db
from pipeline.verify.coreml_programs import padded_inputs
from pipeline.verify.evaluator.evaluator import evaluate
from pipeline.verify.evaluator.faults import FaultRecorder
from pipeline.verify.evaluator.loading import SPEC_FILE, WEIGHTS_FOLDER, load_package
from pipeline.verify.evaluator.mil import is_constant
from tests.export.conversion import convert

CONFIG = EncoderConfig(vocab_size=200, hidden_size=64, layers=1, heads=4, intermediate_size=128, max_positions=64)
TASKS = ("classification", "qa")
LENGTH = 16


def tiny_programs(task: str, head: str = "default", measure: str = "entropy") -> dict[str, ProgramModule]:
    torch.manual_seed(2)
    head = {"classification": "pooled", "qa": "attention"}[task] if head == "default" else head
    model = ExitModel(task, CONFIG, 3, head, [1]).eval()
    model.uncertainty = measure
    with torch.no_grad():  # with the small initial weights every answer is a tie; FastBERT's head has larger ones
        for parameter in (model.encoder if head == "fastbert" else model).parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    return {program.name: program for program in program_modules(model)}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Paths of the segment's package by (task, precision), and of the classifier's `embed`."""
    folder, paths = tmp_path_factory.mktemp("packages"), {}
    for task in TASKS:
        for precision in ("fp32", "fp16"):
            paths[task, precision] = folder / f"{task}_{precision}.mlpackage"
            convert(tiny_programs(task)["segment_0"], LENGTH, "iOS18", precision, paths[task, precision])
    paths["embed"] = folder / "embed.mlpackage"
    convert(tiny_programs("classification")["embed"], LENGTH, "iOS18", "fp32", paths["embed"])
    return paths


def segment_inputs(task: str, size: int) -> dict[str, np.ndarray]:
    """Returns a random input of `size` tokens, padded to LENGTH; the first quarter is no answer."""
    inputs = padded_inputs([0] * size, [index >= size // 4 for index in range(size)], LENGTH, 0)
    inputs["hidden"] = np.random.default_rng(size).normal(size=(1, LENGTH, CONFIG.hidden_size)).astype(np.float32)
    return {name: inputs[name] for name in ("hidden", "attention_bias", *(("answer_bias",) if task == "qa" else ()))}


@torch.no_grad()
def by_torch(task: str, inputs: dict[str, np.ndarray], size: int = LENGTH) -> dict[str, np.ndarray]:
    """Returns the module's outputs for the first `size` tokens, without the padding."""
    program = tiny_programs(task)["segment_0"]
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    cut = [tensors["hidden"][:, :size], *(tensors[name][..., :size] for name in list(inputs)[1:])]
    return {tensor.name: value.numpy() for tensor, value in zip(program.outputs, program.module(*cut))}


def worst_db(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> float:
    """Returns the lowest signal-to-noise ratio of all outputs, without the padding of `actual`."""
    assert expected.keys() == actual.keys()
    return min(
        signal_to_noise_db(value, actual[name][tuple(map(slice, value.shape))]) for name, value in expected.items()
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [LENGTH, LENGTH // 2])
def test_a_float32_program_is_exact_and_padding_changes_nothing(packages, task, size):
    inputs = segment_inputs(task, size)
    actual = evaluate(load_package(packages[task, "fp32"]), "main", inputs).outputs
    assert worst_db(by_torch(task, inputs, size), actual) > 100


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [LENGTH, LENGTH // 2])
def test_a_float16_program_is_close_in_float32_and_in_simulated_float16(packages, task, size):
    inputs, package = segment_inputs(task, size), load_package(packages[task, "fp16"])
    expected = by_torch(task, inputs, size)
    exact, simulated = (
        worst_db(expected, evaluate(package, "main", inputs, precision).outputs) for precision in ("float32", "float16")
    )
    assert exact > 60 and simulated > 45
    assert simulated < exact  # it does round


@pytest.mark.parametrize("measure", ["max_probability", "margin"])
@pytest.mark.parametrize("task", TASKS)
def test_every_measure_and_fastberts_head_compute_what_torch_does(tmp_path, task, measure):
    program = tiny_programs(task, "fastbert", measure)["segment_0"]
    convert(program, LENGTH, "iOS18", "fp16", tmp_path / "segment.mlpackage")
    package = load_package(tmp_path / "segment.mlpackage")
    for size in (LENGTH, LENGTH // 2):
        inputs = segment_inputs(task, size)
        cut = [
            torch.from_numpy(value[:, :size] if name == "hidden" else value[..., :size])
            for name, value in inputs.items()
        ]
        with torch.no_grad():
            expected = {tensor.name: value.numpy() for tensor, value in zip(program.outputs, program.module(*cut))}
        assert 0.01 < float(expected["uncertainty"][0]) < 0.999
        for precision, floor in (("float32", 50), ("float16", 40)):
            actual = evaluate(package, "main", inputs, precision).outputs
            assert worst_db(expected, {**actual, "uncertainty": expected["uncertainty"]}) > floor
            tolerance = 2e-3 if precision == "float32" else 1e-2
            assert float(actual["uncertainty"][0]) == pytest.approx(float(expected["uncertainty"][0]), abs=tolerance)


def test_embed_looks_up_the_right_rows(packages):
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (1, LENGTH)).astype(np.int32)
    actual = evaluate(load_package(packages["embed"]), "main", {"input_ids": ids}).outputs["hidden"]
    expected = tiny_programs("classification")["embed"].module(torch.from_numpy(ids)).detach().numpy()
    assert signal_to_noise_db(expected, actual) > 100


def save(module: nn.Module, path: Path, precision: str = "fp16") -> Path:
    """Saves a module from x [1, 8] to y [1, 8] as a package."""
    tensor = manifest.TensorSpec(name="x", dtype="float32", shape=[1, 8])
    convert(
        ProgramModule("program", module, (tensor,), (tensor.model_copy(update={"name": "y"}),)),
        8,
        "iOS18",
        precision,
        path,
    )
    return path


class LogProbability(nn.Module):
    """p log p as torch users write it: correct in float32, and with torch's own kernel also in float16."""

    def forward(self, x):
        logarithm = torch.log_softmax(x, dim=-1)
        return logarithm.exp() * logarithm


class Gelu(nn.Module):
    def forward(self, x):
        return torch.nn.functional.gelu(x)


class Overflow(nn.Module):
    def forward(self, x):
        return x * 512.0 * 256.0 * 2.0**-17


def test_float16_shows_what_becomes_nan_or_overflows(tmp_path):
    # Core ML takes the log of a softmax that float16 rounds to 0; hence the other form in pipeline.model.uncertainty.
    x = np.array([[0, -1e4, -1e4, 1, 2, 3, 4, 5]], dtype=np.float32)
    package = load_package(save(LogProbability(), tmp_path / "log.mlpackage"))
    assert np.isfinite(evaluate(package, "main", {"x": x}, "float32").outputs["y"]).all()
    assert np.isnan(evaluate(package, "main", {"x": x}, "float16").outputs["y"]).any()
    package = load_package(save(Overflow(), tmp_path / "overflow.mlpackage"))
    x = np.full((1, 8), 2.0, dtype=np.float32)
    assert evaluate(package, "main", {"x": x}, "float32").outputs["y"] == pytest.approx(2.0)
    assert np.isinf(evaluate(package, "main", {"x": x}, "float16").outputs["y"]).all()


def test_gelu_computes_what_torch_and_coremltools_do(tmp_path):
    package = load_package(save(Gelu(), tmp_path / "gelu.mlpackage", "fp32"))
    x = np.linspace(-4, 4, 8, dtype=np.float32)[None]
    actual = evaluate(package, "main", {"x": x}).outputs["y"]
    np.testing.assert_allclose(actual, torch.nn.functional.gelu(torch.from_numpy(x)).numpy(), atol=1e-6)
    import_quietly("coremltools")
    from coremltools.converters.mil.mil import Builder, Function

    with Function({}):
        np.testing.assert_allclose(actual, Builder.gelu(x=x, mode="EXACT").val, atol=1e-6)


class Convolution(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 2, (1, 3), **options)

    def forward(self, x):
        return self.conv(x.reshape(1, 1, 1, 8)).reshape(1, -1)


@pytest.mark.parametrize("options", [{}, {"stride": (1, 2), "dilation": (1, 2)}, {"bias": False}], ids=str)
def test_a_convolution_computes_what_torch_does(tmp_path, options):
    module = Convolution(**options)
    package = load_package(save(module, tmp_path / "conv.mlpackage", "fp32"))
    x = np.linspace(-1, 2, 8, dtype=np.float32)[None]
    np.testing.assert_allclose(
        evaluate(package, "main", {"x": x}).outputs["y"], module(torch.from_numpy(x)).detach().numpy(), atol=1e-6
    )


def test_a_padded_convolution_is_refused(tmp_path):
    package = load_package(save(Convolution(padding=(0, 1)), tmp_path / "conv.mlpackage", "fp32"))
    with pytest.raises(UserError, match="operator 'conv' is not known"):
        evaluate(package, "main", {"x": np.zeros((1, 8), dtype=np.float32)})


class BatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(4, eps=0.1)
        for values in (self.norm.weight.data, self.norm.bias.data, self.norm.running_mean, self.norm.running_var):
            values.uniform_(0.5, 2.0)

    def forward(self, x):
        return self.norm(x.reshape(1, 4, 1, 2)).reshape(1, 8)


def test_a_batch_norm_computes_what_torch_does(tmp_path):
    module = BatchNorm().eval()
    package = load_package(save(module, tmp_path / "norm.mlpackage", "fp32"))
    assert "batch_norm" in {operation.op_type for operation in package.functions["main"].operations}
    x = np.linspace(-1, 2, 8, dtype=np.float32)[None]
    np.testing.assert_allclose(
        evaluate(package, "main", {"x": x}).outputs["y"], module(torch.from_numpy(x)).detach().numpy(), atol=1e-6
    )


def test_one_altered_byte_of_the_weights_shows(packages, tmp_path):
    copy = Path(shutil.copytree(packages["qa", "fp16"], tmp_path / "copy.mlpackage"))
    weights = copy / WEIGHTS_FOLDER / "weight.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 | 1] ^= 0x40  # the exponent of a float16
    weights.write_bytes(data)
    inputs = segment_inputs("qa", LENGTH)
    assert worst_db(by_torch("qa", inputs), evaluate(load_package(copy), "main", inputs).outputs) < 40


def test_an_operator_without_a_definition_is_refused(tmp_path, packages):
    ct = import_quietly("coremltools")
    from coremltools.converters.mil.mil import Builder

    @Builder.program(input_specs=[Builder.TensorSpec(shape=(1, 2, 8))])
    def pooled(x):
        return Builder.avg_pool(x=x, kernel_sizes=[2], strides=[2], pad_type="valid", name="y")

    model = ct.convert(pooled, minimum_deployment_target=ct.target.iOS16, compute_precision=ct.precision.FLOAT32)
    model.save(str(tmp_path / "pool.mlpackage"))
    with pytest.raises(UserError, match="pool.mlpackage.*'avg_pool' is not known"):
        evaluate(load_package(tmp_path / "pool.mlpackage"), "main", {"x": np.ones((1, 2, 8), dtype=np.float32)})

    def rename(spec):
        for operation in spec.mlProgram.functions["main"].block_specializations["CoreML8"].operations:
            if operation.type == "softmax":
                operation.type = "frobnicate"

    with pytest.raises(UserError, match="'frobnicate' is not known"):
        load_package(altered(packages, tmp_path, rename))


def altered(packages, folder: Path, change) -> Path:
    """Returns a copy of a package with its specification changed."""
    ct = import_quietly("coremltools")
    copy = Path(shutil.copytree(packages["qa", "fp16"], folder / "altered.mlpackage"))
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString((copy / SPEC_FILE).read_bytes())
    change(spec)
    (copy / SPEC_FILE).write_bytes(spec.SerializeToString())
    return copy


def test_an_incomplete_package_is_refused_in_one_line(packages, tmp_path):
    def assert_refused(name: str, damage, match: str):
        copy = Path(shutil.copytree(packages["qa", "fp16"], tmp_path / f"{name}.mlpackage"))
        damage(copy)
        with pytest.raises(UserError, match=match) as error:
            load_package(copy)
        assert "\n" not in str(error.value) and f"{name}.mlpackage" in str(error.value)

    def cut(file: Path, share: float):
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])

    assert_refused("no_spec", lambda package: (package / SPEC_FILE).unlink(), "model.mlmodel.*cannot be read")
    assert_refused("cut_spec", lambda package: cut(package / SPEC_FILE, 0.5), "model.mlmodel.*cut or altered")
    assert_refused(
        "no_weights", lambda package: (package / WEIGHTS_FOLDER / "weight.bin").unlink(), "weight.bin.*is missing"
    )
    for share in (0.5, 0.999, 0.0):
        assert_refused(
            f"cut_weights_{share}",
            lambda package, share=share: cut(package / WEIGHTS_FOLDER / "weight.bin", share),
            "cut|does not hold together",
        )
    with pytest.raises(UserError, match="is not a Core ML package"):
        load_package(tmp_path / "nothing.mlpackage")


def test_a_newer_specification_is_refused(packages, tmp_path):
    with pytest.raises(UserError, match="version 99 is newer than"):
        load_package(altered(packages, tmp_path, lambda spec: setattr(spec, "specificationVersion", 99)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"hidden": np.zeros((1, LENGTH + 1, 64), dtype=np.float32)},
            r"hidden: main takes float32 \[1, 16, 64\], not float32 \[1, 17, 64\]",
        ),
        ({"hidden": np.zeros((1, LENGTH, 64), dtype=np.float64)}, "hidden: main takes float32.*not float64"),
        ({"extra": np.zeros(1, dtype=np.float32)}, "extra: is not an input of main"),
        ({"answer_bias": None}, "answer_bias: main needs this input"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(packages, change, match):
    inputs = {name: value for name, value in {**segment_inputs("qa", LENGTH), **change}.items() if value is not None}
    with pytest.raises(UserError, match=match):
        evaluate(load_package(packages["qa", "fp16"]), "main", inputs)


def test_an_unknown_function_is_refused(packages):
    with pytest.raises(UserError, match="length_16: there is no such function; the package has main"):
        evaluate(load_package(packages["qa", "fp16"]), "length_16", segment_inputs("qa", LENGTH))


@pytest.fixture
def inspected(monkeypatch):
    """The values of an evaluation by name: inputs, and operators' results."""
    values, inspect = {}, FaultRecorder.inspect

    def record(self, kind, name, value):
        values[name] = value
        inspect(self, kind, name, value)

    monkeypatch.setattr(FaultRecorder, "inspect", record)
    return values


def test_every_result_and_every_constant_is_rounded_to_float16(tmp_path, inspected):
    convert(tiny_programs("qa")["segment_0"], LENGTH, "iOS18", "int8", tmp_path / "segment.mlpackage")
    package = load_package(tmp_path / "segment.mlpackage")
    inputs, function = segment_inputs("qa", LENGTH // 2), package.functions["main"]
    evaluate(package, "main", inputs, "float16")
    results = {
        output.name for operation in function.operations if not is_constant(operation) for output in operation.outputs
    }
    assert len(results) > 50 and results | set(inputs) == set(inspected)
    assert any(operation.op_type.startswith("constexpr_") for operation in function.operations)
    for name, value in {**inspected, **function.float16_constants}.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            assert value.dtype == np.float32, name
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(value, value.astype(np.float16).astype(np.float32), err_msg=name)


@pytest.mark.parametrize("mask", [-1e4, -6e4])
@pytest.mark.parametrize("size", [1, 2, LENGTH - 1, LENGTH])
@pytest.mark.parametrize("task", TASKS)
def test_any_length_in_a_bucket_is_finite_in_float16_and_computes_what_torch_does(packages, task, size, mask):
    """The padding ranges from all tokens but one to none."""
    inputs = segment_inputs(task, size)
    inputs["attention_bias"] *= np.float32(mask / -1e4)
    evaluation = evaluate(load_package(packages[task, "fp16"]), "main", inputs, "float16")
    assert evaluation.faults == ()
    # With one possible answer the uncertainty is 0, so a signal-to-noise ratio means nothing.
    uncertainty = {"uncertainty": evaluation.outputs["uncertainty"]}
    assert worst_db({**by_torch(task, inputs, size), **uncertainty}, evaluation.outputs) > 40


def test_the_first_overflow_and_the_first_nan_are_named(packages, tmp_path):
    package = load_package(save(Overflow(), tmp_path / "overflow.mlpackage"))
    x = np.full((1, 8), 2.0, dtype=np.float32)
    assert evaluate(package, "main", {"x": x}, "float32").faults == ()
    (fault,) = evaluate(package, "main", {"x": x}, "float16").faults
    assert (fault.kind, fault.what) == ("mul", "overflows") and str(fault) == f"mul {fault.name} overflows"
    package = load_package(save(LogProbability(), tmp_path / "log.mlpackage"))
    x = np.array([[0, -1e4, -1e4, 1, 2, 3, 4, 5]], dtype=np.float32)
    infinite, nan = evaluate(package, "main", {"x": x}, "float16").faults
    assert (infinite.kind, infinite.what, nan.kind, nan.what) == ("log", "overflows", "mul", "makes NaN")

    # A mask of -inf is a fault of the input; the operator that makes a NaN of it is named, too.
    package, inputs = load_package(packages["qa", "fp16"]), segment_inputs("qa", LENGTH)
    for mask in (-np.inf, -1e6):  # the second is infinite only in float16
        given = {**inputs, "answer_bias": np.where(inputs["answer_bias"] < 0, mask, 0.0).astype(np.float32)}
        infinite, nan = evaluate(package, "main", given, "float16").faults
        assert str(infinite) == "input answer_bias is infinite" and nan.kind != "input" and nan.what == "makes NaN"
        assert len(evaluate(package, "main", given, "float32").faults) == (2 if np.isinf(mask) else 0)


@pytest.mark.parametrize(
    ("scale", "zero", "dtype"),
    [(2.0**-5, None, "int8"), ([0.02, 0.1, 0.5, 0.04], [3, -9, 0, 100], "int8"), (0.031, 128, "uint8")],
)
def test_int8_rounding_computes_what_torch_does_and_smooth_only_clips(tmp_path, scale, zero, dtype):
    ct = import_quietly("coremltools")
    from coremltools.converters.mil.mil import Builder, types

    per_channel = isinstance(scale, list)
    options = {
        "scale": np.float32(scale),
        **({"axis": 1} if per_channel else {}),
        **({} if zero is None else {"zero_point": np.dtype(dtype).type(zero)}),
    }

    @Builder.program(input_specs=[Builder.TensorSpec((2, 4, 9), dtype=types.fp32)], opset_version=ct.target.iOS17)
    def program(x):
        return Builder.dequantize(input=Builder.quantize(input=x, output_dtype=dtype, **options), name="y", **options)

    with quiet_stderr(), quiet_logging():
        model = ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        model.save(str(tmp_path / "rounds.mlpackage"))
    package = load_package(tmp_path / "rounds.mlpackage")
    x = np.random.default_rng(0).standard_normal((2, 4, 9)).astype(np.float32) * 4
    least, most = (0, 255) if dtype == "uint8" else (-128, 127)
    if per_channel:
        args = (torch.tensor(scale), torch.tensor(zero, dtype=torch.int32), 1)
        expected = torch.fake_quantize_per_channel_affine(torch.from_numpy(x), *args, least, most)
    else:
        expected = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), scale, zero or 0, least, most)
    np.testing.assert_allclose(evaluate(package, "main", {"x": x}).outputs["y"], expected.numpy(), rtol=1e-6, atol=1e-6)
    scale, zero = np.reshape(scale, (-1, 1)), np.reshape(zero or 0, (-1, 1))
    in_range = np.clip(x, (least - zero) * scale, (most - zero) * scale)
    np.testing.assert_allclose(
        evaluate(package, "main", {"x": x}, "smooth").outputs["y"], in_range, rtol=1e-4, atol=1e-5
    )
    assert np.abs(expected.numpy() - in_range).max() > 0.01 and np.abs(in_range - x).max() > 0.01
