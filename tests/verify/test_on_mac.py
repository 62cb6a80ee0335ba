"""Checks of Core ML itself on a Mac; elsewhere everything around Apple's runtime, with a stand-in for it."""

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
from pipeline.report.terminal import mac_lines
from pipeline.schemes import FLOAT16_DEVICE_FLOOR_DB
from pipeline.support.errors import UserError
from pipeline.support.quiet import import_quietly
from pipeline.verify.apple import UNITS, AppleCoreML, errors_in_one_line, planned_operators, single_function
from pipeline.verify.checks import MacReport, PlannedOperator, ProgramPlan
from pipeline.verify.coreml_programs import program_runner
from pipeline.verify.evaluator.evaluator import evaluate
from pipeline.verify.evaluator.loading import load_package
from pipeline.verify.floors import device_floor_db
from pipeline.verify.machine import Machine, this_machine
from pipeline.verify.on_mac import check_on_mac, compare_runs, verify_on_mac

CONFIG = EncoderConfig(vocab_size=200, hidden_size=64, layers=1, heads=4, intermediate_size=128, max_positions=64)
OBSTACLE = this_machine().obstacle(9)
on_mac = pytest.mark.skipif(OBSTACLE is not None, reason=f"Core ML itself does not run here: {OBSTACLE}")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Manifest]:
    """A span model for iOS 18, with packages for 8 and 16 tokens and a `.pte` for the delegate for 16."""
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
    one_bucket = recipe.model_copy(update={"export": recipe.export.model_copy(update={"coreml_buckets": [16]})})
    programs = [*export_coreml(model, folder, recipe), *export_executorch_coreml(model, folder, one_bucket)]
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
        name="tiny", task="qa", max_length=32, model=shape, scheme="fp32", embeddings_scheme="fp32",
        programs=programs, speeds={}, files=[],
        tokenizer=Tokenizer(vocab_size=200, lowercase=True, pad_id=0, unk_id=1, cls_id=2, sep_id=3), provenance={},
        qa=QAOptions(window=32, stride=4, max_question=8, max_answer=8, allow_no_answer=False),
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder, manifest


def planned(operator: str, name: str, device: str, supported: tuple[str, ...], cost: float | None) -> PlannedOperator:
    return PlannedOperator(operator=operator, name=name, device=device, supported=supported, cost=cost)


# These run on a Mac.


@on_mac
def test_core_ml_agrees_with_the_evaluator_on_every_processor_and_gives_plans(exported):
    folder, manifest = exported
    checks, report = verify_on_mac(folder)
    assert [str(check) for check in checks if not check.passed] == []
    processors = {
        check.metric.split("_snr")[0] for check in checks if check.backend == "coreml" and "snr" in check.metric
    }
    assert report.ran and processors == set(UNITS)
    assert {(plan.program, plan.length) for plan in report.plans} == {
        ("embed", 8),
        ("embed", 16),
        ("segment_0", 8),
        ("segment_0", 16),
    }
    for plan in report.plans:
        assert {planned.operator for planned in plan.operators} & {"linear", "matmul", "gather"}
        assert set(plan.devices) <= {"CPU", "GPU", "Neural Engine"}


@on_mac
@pytest.mark.parametrize("units", UNITS)
def test_a_function_predicts_for_its_bucket(exported, units):
    folder, manifest = exported
    program = next(program for program in manifest.programs if (program.name, program.lengths) == ("embed", [16]))
    inputs = {"input_ids": np.arange(16, dtype=np.int32)[None]}
    actual = AppleCoreML().predict(folder / program.file, program.method, units, inputs)["hidden"]
    np.testing.assert_allclose(
        actual, evaluate(load_package(folder / program.file), program.method, inputs).outputs["hidden"], atol=0.02
    )


# These run everywhere. The evaluator in float16 stands in for Apple's runtime, sometimes with a fault.


class Rounding:
    """A `Device` that rounds to float16. `fault` changes the outputs of a place."""

    def __init__(self, folder: Path, fault=lambda where, outputs: outputs):
        self.folder, self.fault, self.calls = folder, fault, []
        self.run = {backend: program_runner(folder, backend) for backend in ("coreml", "executorch-coreml")}
        self.manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())

    def program(self, file: Path, method: str) -> Program:
        return next(
            program
            for program in self.manifest.programs
            if (self.folder / program.file, program.method) == (file, method)
        )

    def predict(self, package, function, units, inputs):
        self.calls.append((package.name, function, units))
        return self.fault(units, self.run["coreml"](self.program(package, function), inputs, "float16").outputs)

    def plan(self, package, function):
        return (
            planned("linear", function, "Neural Engine", ("CPU", "Neural Engine"), 0.75),
            planned("gather", "g", "CPU", ("CPU",), None),
        )

    def run_method(self, file, method, inputs):
        program = self.program(file, method)
        named = {tensor.name: value for tensor, value in zip(program.inputs, inputs)}
        outputs = self.fault("delegate", self.run["executorch-coreml"](program, named, "float16").outputs)
        return [outputs[tensor.name] for tensor in program.outputs]


def test_every_program_runs_on_every_processor(exported):
    folder, manifest = exported
    device, steps = Rounding(folder), []
    checks, plans = check_on_mac(folder, manifest, device, lambda *step: steps.append(step[1:]))
    assert [str(check) for check in checks if not check.passed] == [] and steps[-1] == (6, 6)
    assert {(name.split(".")[0], function, units) for name, function, units in device.calls} == {
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
    # Rounding to float16 makes some noise, but less than the floor permits.
    assert FLOAT16_DEVICE_FLOOR_DB < min(check.value for check in checks if "snr" in check.metric) < 80
    assert [(plan.program, plan.length, plan.devices) for plan in plans] == [
        (name, length, {"Neural Engine": 1, "CPU": 1}) for name in ("embed", "segment_0") for length in (8, 16)
    ]


def test_int8_activations_have_a_lower_floor(exported):
    """Rounding decides to which step a value falls, so 45 dB is out of reach; 8 dB still tells programs apart."""
    program = next(program for program in exported[1].programs if program.name == "segment_0")
    random = np.random.default_rng(0)
    right = {tensor.name: random.standard_normal(tensor.shape).astype(np.float32) for tensor in program.outputs}
    actual = {
        name: value + random.standard_normal(value.shape) * 0.1 * (name != "uncertainty")
        for name, value in right.items()
    }  # 20 dB
    floors = {}
    for precision in ("int8", "int8-a8"):
        (check, _) = compare_runs(
            program.model_copy(update={"precision": precision}), "qa", "cpu_ne", [right], [actual]
        )
        floors[precision] = (check.floor, check.passed)
    assert floors == {"int8": (FLOAT16_DEVICE_FLOOR_DB, False), "int8-a8": (8.0, True)}
    embed = exported[1].programs[0].model_copy(update={"precision": "int8-a8"})
    assert embed.name == "embed" and device_floor_db(embed) == FLOAT16_DEVICE_FLOOR_DB


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


# A method's outputs have no names, so none can be missing under its name.
PLACES = [
    (fault, where) for fault in FAULTS for where in ("cpu_gpu", "delegate") if (fault, where) != ("missing", "delegate")
]


@pytest.mark.parametrize(("fault", "where"), PLACES)
def test_a_processor_with_wrong_outputs_is_named(exported, fault, where):
    folder, manifest = exported

    def break_outputs(place, outputs):
        return FAULTS[fault](outputs) if place == where and "hidden_out" in outputs else outputs

    checks, _ = check_on_mac(folder, manifest, Rounding(folder, break_outputs))
    failed = {(check.program, check.metric) for check in checks if not check.passed}
    assert failed == {
        ("segment_0", f"{where}_snr_db_{length}") for length in ((16,) if where == "delegate" else (8, 16))
    }
    assert all(check.note.startswith("output ") for check in checks if not check.passed)


@pytest.mark.parametrize("where", ["cpu_ne", "delegate"])
def test_a_program_that_does_not_run_in_one_place_fails_there_with_the_reason(exported, where):
    folder, manifest = exported

    def refuse(place, outputs):
        if place == where:
            raise UserError("Core ML does not run it (no such luck)", file="embed.mlpackage", field="length_8")
        return outputs

    device = Rounding(folder, refuse)
    device.plan = lambda package, function: refuse(where, None)
    checks, plans = check_on_mac(folder, manifest, device)
    failed = [check for check in checks if not check.passed]
    assert {check.metric.split("_snr")[0] for check in failed} == {where}
    assert all(check.note == "embed.mlpackage: length_8: Core ML does not run it (no such luck)" for check in failed)
    assert all(plan.operators == () and "no such luck" in plan.reason for plan in plans)
    assert "none, embed.mlpackage" in mac_lines(MacReport(ran=True, machine="macOS 15.1", plans=tuple(plans)))[1]


def test_an_error_of_apples_runtime_becomes_one_line(exported, tmp_path):
    """Off a Mac, coremltools refuses to load a model, and ExecuTorch to load a method without its delegate."""
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
        errors_in_one_line(Path("a.pte"), "forward"),
    ):
        raise RuntimeError


def test_a_wrong_uncertainty_fails_alone():
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
        snr, agreement = compare_runs(
            program, "classification", "cpu", [right], [{**right, "uncertainty": np.array([uncertainty])}]
        )
        assert snr.passed and (agreement.metric, agreement.passed) == ("cpu_uncertainty_8", passes)
    assert (
        compare_runs(program, "classification", "cpu_ne", [right], [{**right, "logits": right["logits"] + 0.1}])[0].note
        == "output logits"
    )


class Stub:
    """An `MLComputePlan` made of coremltools' own classes, which coremltools itself makes only on a Mac."""

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


def test_a_plan_is_read_with_the_operators_inside_blocks():
    assert list(planned_operators(Stub(), "main")) == [
        planned("linear", "y", "Neural Engine", ("CPU", "Neural Engine"), 0.5),
        planned("gather", "g", "CPU", ("CPU", "CPU"), None),
        planned("cond", "c", "CPU", ("CPU", "CPU"), None),
        planned("relu", "inside", "GPU", ("CPU", "GPU"), None),
    ]
    assert list(planned_operators(Stub(), "other")) == []


def test_a_single_function_computes_what_it_does_in_its_package(exported, tmp_path):
    folder, manifest = exported
    program = next(
        program
        for program in manifest.programs
        if (program.backend, program.name, program.lengths) == ("coreml", "embed", [16])
    )
    single = single_function(folder / program.file, program.method, tmp_path)
    inputs = {"input_ids": np.arange(16, dtype=np.int32)[None]}
    assert list(load_package(single).functions) == ["main"] and single_function(single, "main", tmp_path) == single
    np.testing.assert_array_equal(
        evaluate(load_package(single), "main", inputs).outputs["hidden"],
        evaluate(load_package(folder / program.file), program.method, inputs).outputs["hidden"],
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
def test_the_obstacle_to_running_core_ml(machine, version, reason):
    obstacle = machine.obstacle(version)
    assert obstacle is None if reason is None else reason in obstacle


def test_doctor_tells_whether_core_ml_runs_here():
    able, unable = (doctor.core_ml(machine) for machine in (Machine("Darwin", (15, 1), True), Machine("Linux")))
    assert able.ok and "CPU, GPU and Neural Engine" in able.found
    assert not unable.ok and "this is Linux" in unable.found and "verify" in unable.remedy
    assert any(finding == doctor.core_ml(this_machine()) for finding in doctor.examine())


@pytest.mark.skipif(OBSTACLE is None, reason="Core ML runs here")
def test_without_core_ml_there_are_no_checks(exported):
    checks, report = verify_on_mac(exported[0])
    assert checks == [] and not report.ran and report.plans == () and report.reason
    assert mac_lines(report) == [f"Core ML itself has not run: {report.reason}"]


def test_a_report_can_be_read_back_from_json():
    plan = ProgramPlan.of("embed", "coreml", 8, (planned("gather", "g", "CPU", ("CPU",), 0.5),))
    raw = json.loads(json.dumps(MacReport(ran=True, machine="macOS 15.1", plans=(plan,)).model_dump(mode="json")))
    assert MacReport.model_validate(raw).plans[0].devices == {"CPU": 1}
    assert (
        mac_lines(MacReport(ran=True, machine="macOS 15.1", plans=(plan,)))[1] == "  plan of embed, 8 tokens: 1 on CPU"
    )
