"""Core ML itself, on a Mac; and, anywhere, all that is done with what it says, up to the border to Apple's runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import doctor
from pipeline.bundle.manifest import Manifest, ModelShape, Program, QAOptions, TensorSpec, Tokenizer
from pipeline.export.coreml import export_coreml
from pipeline.export.executorch_coreml import export_executorch_coreml
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.recipe import Recipe
from pipeline.report.results import MacResults
from pipeline.report.terminal import mac_lines
from pipeline.schemes import FLOAT16_DEVICE_FLOOR_DB
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly
from pipeline.verify.coreml_parity import runner
from pipeline.verify.evaluator.evaluator import evaluate, load_package
from pipeline.verify.machine import Machine, this_machine
from pipeline.verify.on_mac import (
    UNITS,
    AppleCoreML,
    MacReport,
    Placed,
    Plan,
    check_on_mac,
    compare,
    floor_of,
    one_line,
    placed,
    single_function,
    verify_on_mac,
)

CONFIG = EncoderConfig(vocab_size=200, hidden_size=64, layers=1, heads=4, intermediate_size=128, max_positions=64)
OBSTACLE = this_machine().obstacle(9)
on_mac = pytest.mark.skipif(OBSTACLE is not None, reason=f"Core ML itself does not run here: {OBSTACLE}")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Manifest]:
    """A span model with packages for 8 and 16 tokens and a `.pte` for the delegate for 16, iOS 18."""
    torch.manual_seed(1)
    model = ExitModel("qa", CONFIG, 2, "attention", [1]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6.0)
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "task": "qa",
            "qa": {"window": 32, "stride": 4, "max_question": 8},
            "export": {"max_length": 32, "coreml_buckets": [8, 16], "coreml_precision": "fp16"},
        }
    )
    folder = tmp_path_factory.mktemp("bundle")
    one = recipe.model_copy(update={"export": recipe.export.model_copy(update={"coreml_buckets": [16]})})
    programs = [*export_coreml(model, folder, recipe), *export_executorch_coreml(model, folder, one)]
    shape = ModelShape(
        layers=1,
        hidden_size=64,
        heads=4,
        intermediate_size=128,
        vocab_size=200,
        parameters=1,
        exit_layers=[1],
        head="attention",
    )
    manifest = Manifest(
        name="tiny", task="qa", max_length=32, model=shape, scheme="fp32", embeddings_scheme="fp32", programs=programs, speeds={}, files=[],
        tokenizer=Tokenizer(vocab_size=200, lowercase=True, pad_id=0, unk_id=1, cls_id=2, sep_id=3), provenance={},
        qa=QAOptions(window=32, stride=4, max_question=8, max_answer=8, allow_no_answer=False),
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder, manifest


# On a Mac.


@on_mac
def test_core_ml_agrees_with_the_evaluator_on_every_processor_and_says_where_it_runs(exported):
    folder, manifest = exported
    checks, report = verify_on_mac(folder)
    assert [str(check) for check in checks if not check.passed] == []
    of_packages = {
        check.metric.split("_snr")[0] for check in checks if check.backend == "coreml" and "snr" in check.metric
    }
    assert report.ran and of_packages == set(UNITS)
    assert {(plan.program, plan.length) for plan in report.plans} == {
        ("embed", 8),
        ("embed", 16),
        ("segment_0", 8),
        ("segment_0", 16),
    }
    for plan in report.plans:
        assert {each.operator for each in plan.operators} & {"linear", "matmul", "gather"}
        assert set(plan.devices) <= {"CPU", "GPU", "Neural Engine"}


@on_mac
@pytest.mark.parametrize("units", UNITS)
def test_a_functions_prediction_is_that_of_its_bucket(exported, units):
    folder, manifest = exported
    program = next(each for each in manifest.programs if (each.name, each.lengths) == ("embed", [16]))
    inputs = {"input_ids": np.arange(16, dtype=np.int32)[None]}
    got = AppleCoreML().predict(folder / program.file, program.method, units, inputs)["hidden"]
    np.testing.assert_allclose(
        got, evaluate(load_package(folder / program.file), program.method, inputs)["hidden"], atol=0.02
    )


# Up to the border. What stands in for Apple's runtime is the evaluator with its results rounded to float16, or with a fault.


class Rounding:
    """A `Device` for these tests."""

    def __init__(self, folder: Path, fault=lambda where, outputs: outputs):
        self.folder, self.fault, self.asked = folder, fault, []
        self.run = {backend: runner(folder, backend) for backend in ("coreml", "executorch-coreml")}
        self.manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())

    def program(self, file: Path, method: str) -> Program:
        return next(each for each in self.manifest.programs if (self.folder / each.file, each.method) == (file, method))

    def predict(self, package, function, units, inputs):
        self.asked.append((package.name, function, units))
        return self.fault(units, self.run["coreml"](self.program(package, function), inputs, "float16").outputs)

    def plan(self, package, function):
        return (
            Placed("linear", function, "Neural Engine", ("CPU", "Neural Engine"), 0.75),
            Placed("gather", "g", "CPU", ("CPU",), None),
        )

    def run_method(self, file, method, inputs):
        program = self.program(file, method)
        named = {tensor.name: value for tensor, value in zip(program.inputs, inputs)}
        outputs = self.fault("delegate", self.run["executorch-coreml"](program, named, "float16").outputs)
        return [outputs[tensor.name] for tensor in program.outputs]


def test_every_program_is_asked_for_on_every_processor(exported):
    folder, manifest = exported
    device, steps = Rounding(folder), []
    checks, plans = check_on_mac(folder, manifest, device, lambda *step: steps.append(step[1:]))
    assert [str(check) for check in checks if not check.passed] == [] and steps[-1] == (6, 6)
    assert {(name.split(".")[0], function, units) for name, function, units in device.asked} == {
        (name, f"length_{length}", units) for name in ("embed", "segment_0") for length in (8, 16) for units in UNITS
    }
    expected = {
        (backend, program, f"{where}_{metric}_{length}")
        for backend, places, lengths in (("coreml", UNITS, (8, 16)), ("executorch-coreml", ("delegate",), (16,)))
        for where in places
        for program, metric in (("embed", "snr_db"), ("segment_0", "snr_db"), ("segment_0", "uncertainty"))
        for length in lengths
    }
    assert {(check.backend, check.program, check.metric) for check in checks} == expected and len(checks) == len(
        expected
    )
    # Rounding to float16 costs something, and less than the floor allows.
    assert FLOAT16_DEVICE_FLOOR_DB < min(check.value for check in checks if "snr" in check.metric) < 80
    assert [(plan.program, plan.length, plan.devices) for plan in plans] == [
        (name, length, {"Neural Engine": 1, "CPU": 1}) for name in ("embed", "segment_0") for length in (8, 16)
    ]


def test_int8_activations_need_agree_less(exported):
    """A step's side is a matter of rounding, so 45 dB would be asked in vain; 8 dB tell a program from another."""
    program = next(each for each in exported[1].programs if each.name == "segment_0")
    random = np.random.default_rng(0)
    right = {tensor.name: random.standard_normal(tensor.shape).astype(np.float32) for tensor in program.outputs}
    got = {
        name: value + random.standard_normal(value.shape) * 0.1 * (name != "uncertainty")
        for name, value in right.items()
    }  # 20 dB
    floors = {}
    for precision in ("int8", "int8-a8"):
        (check, _) = compare(program.model_copy(update={"precision": precision}), "qa", "cpu_ne", [right], [got])
        floors[precision] = (check.floor, check.passed)
    assert floors == {"int8": (FLOAT16_DEVICE_FLOOR_DB, False), "int8-a8": (8.0, True)}
    embed = exported[1].programs[0].model_copy(update={"precision": "int8-a8"})
    assert embed.name == "embed" and floor_of(embed) == FLOAT16_DEVICE_FLOOR_DB


FAULTS = {
    "not a number": lambda outputs: {**outputs, "hidden_out": np.full_like(outputs["hidden_out"], np.nan)},
    "swapped": lambda outputs: {
        **outputs,
        "start_logits": outputs["end_logits"],
        "end_logits": outputs["start_logits"],
    },
    "missing": lambda outputs: {name: value for name, value in outputs.items() if name != "end_logits"},
    "another shape": lambda outputs: {**outputs, "hidden_out": outputs["hidden_out"][:, :-1]},
    "one per cent off": lambda outputs: {**outputs, "start_logits": outputs["start_logits"] * 1.01},
}


# A method's outputs have no names, so that none is missing by its name.
PLACES = [
    (fault, where) for fault in FAULTS for where in ("cpu_gpu", "delegate") if (fault, where) != ("missing", "delegate")
]


@pytest.mark.parametrize(("fault", "where"), PLACES)
def test_a_processor_that_computes_something_else_is_named(exported, fault, where):
    folder, manifest = exported

    def faulty(place, outputs):
        return FAULTS[fault](outputs) if place == where and "hidden_out" in outputs else outputs

    checks, _ = check_on_mac(folder, manifest, Rounding(folder, faulty))
    failed = {(check.program, check.metric) for check in checks if not check.passed}
    assert failed == {
        ("segment_0", f"{where}_snr_db_{length}") for length in ((16,) if where == "delegate" else (8, 16))
    }
    assert all(check.note.startswith("output ") for check in checks if not check.passed)


@pytest.mark.parametrize("where", ["cpu_ne", "delegate"])
def test_a_program_that_does_not_run_somewhere_fails_there_with_the_reason(exported, where):
    folder, manifest = exported

    def refusing(place, outputs):
        if place == where:
            raise UserError("Core ML does not run it (no such luck)", file="embed.mlpackage", field="length_8")
        return outputs

    device = Rounding(folder, refusing)
    device.plan = lambda package, function: refusing(where, None)
    checks, plans = check_on_mac(folder, manifest, device)
    failed = [check for check in checks if not check.passed]
    assert {check.metric.split("_snr")[0] for check in failed} == {where}
    assert all(check.note == "embed.mlpackage: length_8: Core ML does not run it (no such luck)" for check in failed)
    assert all(plan.operators == () and "no such luck" in plan.reason for plan in plans)
    assert "none, embed.mlpackage" in mac_lines(MacReport(True, machine="macOS 15.1", plans=tuple(plans)))[1]


def test_what_apples_runtime_raises_is_one_line(exported, tmp_path):
    """Here that is coremltools' own refusal to load a model elsewhere than on a Mac, and ExecuTorch's to load one for a delegate that it lacks."""
    folder, manifest = exported
    package, method = manifest.programs[0], manifest.programs[-1]
    if OBSTACLE is None:
        pytest.skip("Core ML runs here")
    device, inputs = AppleCoreML(), {"input_ids": np.zeros((1, 8), dtype=np.int32)}
    calls = [
        (package, lambda: device.predict(folder / package.file, package.method, "cpu", inputs)),
        (package, lambda: device.plan(folder / package.file, package.method)),
        (method, lambda: device.run_method(folder / method.file, method.method, [])),
    ]
    for program, call in calls:
        with pytest.raises(UserError) as caught:
            call()
        line = str(caught.value)
        assert line.startswith(f"{folder / program.file}: {program.method}: ") and "\n" not in line
    with (
        pytest.raises(UserError, match="a.pte: forward: Core ML does not run it .RuntimeError.$"),
        one_line(Path("a.pte"), "forward"),
    ):
        raise RuntimeError


def test_an_uncertainty_that_is_off_fails_by_itself():
    tensors = [
        TensorSpec(name="logits", dtype="float32", shape=[1, 3]),
        TensorSpec(name="uncertainty", dtype="float32", shape=[1]),
    ]
    program = Program(
        name="segment_0",
        backend="coreml",
        file="a",
        method="main",
        precision="fp16",
        inputs=[],
        outputs=tensors,
        lengths=[8],
    )
    right = {"logits": np.array([[1.0, 2.0, 3.0]]), "uncertainty": np.array([0.5])}
    for uncertainty, passes in ((0.505, True), (0.52, False), (np.nan, False)):
        snr, other = compare(
            program, "classification", "cpu", [right], [{**right, "uncertainty": np.array([uncertainty])}]
        )
        assert snr.passed and (other.metric, other.passed) == ("cpu_uncertainty_8", passes)
    assert (
        compare(program, "classification", "cpu_ne", [right], [{**right, "logits": right["logits"] + 0.1}])[0].note
        == "output logits"
    )


class Stub:
    """An `MLComputePlan` of coremltools' own classes, which it fills on a Mac alone."""

    def __init__(self):
        plans = import_quietly("coremltools.models.compute_plan")
        self.devices = import_quietly("coremltools.models.compute_device")
        self.usage = plans.MLComputePlanDeviceUsage
        self.cost = plans.MLComputePlanCost

        def operation(kind: str, name: str, blocks=()):
            outputs = [plans.MLModelStructureProgramNamedValueType(name=name, type=None)]
            return plans.MLModelStructureProgramOperation({}, kind, outputs, list(blocks), None)

        def function(*operations):
            return plans.MLModelStructureProgramFunction(
                [], plans.MLModelStructureProgramBlock([], list(operations), [])
            )

        inner = plans.MLModelStructureProgramBlock([], [operation("ios18.relu", "inside")], [])
        main = function(
            operation("const", "w"),
            operation("ios18.linear", "y"),
            operation("ios18.gather", "g"),
            operation("cond", "c", [inner]),
        )
        self.model_structure = plans.MLModelStructure(
            None, plans.MLModelStructureProgram({"main": main, "other": function()}), None
        )

    def device(self, kind: str):
        return object.__new__(getattr(self.devices, f"ML{kind}ComputeDevice"))

    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        kind = operation.operator_name.split(".")[-1]
        if kind == "const":
            return None
        preferred = {"linear": "NeuralEngine", "gather": "CPU", "cond": "CPU", "relu": "GPU"}[kind]
        return self.usage(self.device(preferred), [self.device("CPU"), self.device(preferred)])

    def get_estimated_cost_for_mlprogram_operation(self, operation):
        return self.cost(0.5) if "linear" in operation.operator_name else None


def test_a_plan_is_read_operator_by_operator_and_into_blocks():
    assert list(placed(Stub(), "main")) == [
        Placed("linear", "y", "Neural Engine", ("CPU", "Neural Engine"), 0.5),
        Placed("gather", "g", "CPU", ("CPU", "CPU"), None),
        Placed("cond", "c", "CPU", ("CPU", "CPU"), None),
        Placed("relu", "inside", "GPU", ("CPU", "GPU"), None),
    ]
    assert list(placed(Stub(), "other")) == []


def test_a_function_alone_computes_what_it_does_among_others(exported, tmp_path):
    folder, manifest = exported
    program = next(
        each for each in manifest.programs if (each.backend, each.name, each.lengths) == ("coreml", "embed", [16])
    )
    single = single_function(folder / program.file, program.method, tmp_path)
    inputs = {"input_ids": np.arange(16, dtype=np.int32)[None]}
    assert list(load_package(single).functions) == ["main"] and single_function(single, "main", tmp_path) == single
    np.testing.assert_array_equal(
        evaluate(load_package(single), "main", inputs)["hidden"],
        evaluate(load_package(folder / program.file), program.method, inputs)["hidden"],
    )


MACHINES = [
    (Machine("Linux"), 9, "only macOS has Core ML, this is Linux"),
    (Machine("Darwin", (13, 6), True), 0, "macOS 13.6 is older than 14.4, the first that can run and plan programs"),
    (Machine("Darwin", (14, 5), True), 9, "macOS 14.5 is older than 15, the first that can run these programs"),
    (Machine("Darwin", (15, 1), True), 99, "it is not known which macOS reads specification version 99"),
    (Machine("Darwin", (15, 1), False), 9, "libcoremlpython"),
    (Machine("Darwin", (14, 4), True), 8, None),
    (Machine("Darwin", (15, 1), True), 9, None),
]


@pytest.mark.parametrize(("machine", "version", "reason"), MACHINES)
def test_what_keeps_core_ml_from_running(machine, version, reason):
    obstacle = machine.obstacle(version)
    assert obstacle is None if reason is None else reason in obstacle


def test_doctor_says_whether_core_ml_runs_here():
    able, unable = (doctor.core_ml(machine) for machine in (Machine("Darwin", (15, 1), True), Machine("Linux")))
    assert able.ok and "CPU, GPU and Neural Engine" in able.found
    assert not unable.ok and "this is Linux" in unable.found and "verify" in unable.remedy
    assert any(finding == doctor.core_ml(this_machine()) for finding in doctor.examine())


@pytest.mark.skipif(OBSTACLE is None, reason="Core ML runs here")
def test_where_core_ml_does_not_run_no_check_says_it_did(exported):
    checks, report = verify_on_mac(exported[0])
    assert checks == [] and not report.ran and report.plans == () and report.reason
    assert mac_lines(report) == [f"Core ML itself has not run: {report.reason}"]


def test_a_report_is_json_that_the_page_takes():
    plan = Plan("embed", "coreml", 8, (Placed("gather", "g", "CPU", ("CPU",), 0.5),))
    raw = json.loads(json.dumps(MacReport(True, machine="macOS 15.1", plans=(plan,)).to_json()))
    assert MacResults.model_validate(raw).plans[0].devices == {"CPU": 1}
    assert mac_lines(MacReport(True, machine="macOS 15.1", plans=(plan,)))[1] == "  plan of embed, 8 tokens: 1 on CPU"
