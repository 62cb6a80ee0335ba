"""Core ML programs that compute what their model computes pass, and those that do not are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.bundle.conformance import Case, Conformance, ExitVector, WindowVector
from pipeline.bundle.manifest import ExitOptions, Manifest, ModelShape, QAOptions, Tokenizer
from pipeline.data.items import Item
from pipeline.export import coreml
from pipeline.export.coreml import convert_structure, export_coreml
from pipeline.export.fingerprints import make_fingerprints
from pipeline.export.program_modules import program_modules
from pipeline.model.encoder import EncoderConfig
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.support.errors import UserError
from pipeline.tasks import get_task
from pipeline.verify.checks import Check, MacReport
from pipeline.verify.comparison import MAX_DB, signal_to_noise_db
from pipeline.verify.coreml_modules import check_against_model
from pipeline.verify.coreml_parity import check_coreml
from pipeline.verify.coreml_programs import padded_inputs
from pipeline.verify.evaluator.loading import WEIGHTS_FOLDER
from pipeline.verify.verify import Verification
from quantize.coreml_schemes import compress, stored_bytes
from quantize.int8_inputs import input_gains
from quantize.schemes import named_linears

CONFIG = EncoderConfig(vocab_size=200, hidden_size=64, layers=2, heads=4, intermediate_size=128, max_positions=64)


@torch.no_grad()
def vectors(model: ExitModel) -> Conformance:
    """Returns what torch computes for eight random inputs of 3 to 24 tokens, unpadded and in float32."""
    random, programs, cases = np.random.default_rng(3), Programs.of(model), []
    for size in range(3, 27, 3):
        ids = random.integers(0, CONFIG.vocab_size, size).tolist()
        mask = [int(index > 0) for index in range(size)] if model.task == "qa" else None
        inputs = {name: torch.from_numpy(value) for name, value in padded_inputs(ids, mask, size, 0).items()}
        outputs = programs(inputs["input_ids"], inputs["attention_bias"], inputs["answer_bias"])
        exits = []
        for _, *numbers in outputs:
            logits = {name: value.flatten().tolist() for name, value in zip(get_task(model.task).exit_outputs, numbers)}
            if model.task == "regression":
                uncertainty = abs(logits["logits"][0] - exits[-1].outputs["logits"][0]) if exits else 1.0
            else:
                uncertainty = float(numbers[-1])
            exits.append(ExitVector(outputs=logits, uncertainty=min(uncertainty, 1.0)))
        cases.append(Case(text="a", windows=[WindowVector(input_ids=ids, answer_mask=mask, exits=exits)], outcomes={}))
    return Conformance(task=model.task, tolerance=0.1, uncertainty_tolerance=0.1, cases=cases)


CASES = [
    ("classification", "int8", "standard"),
    ("regression", "int8", "ane"),
    ("qa", "int8", "ane"),
    ("qa", "fp16", "standard"),
    ("classification", "fp16", "ane"),
]


def tiny_model(task: str) -> ExitModel:
    torch.manual_seed(4)
    model = ExitModel(
        task, CONFIG, 1 if task == "regression" else 3, "attention" if task == "qa" else "pooled", [1, 2]
    ).eval()
    with torch.no_grad():  # with the small initial weights every answer is a tie
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
        if task == "regression":  # predictions within the label range, or nearly
            for head in model.heads:
                head.out.weight.mul_(0.3)
                head.out.bias.fill_(0.5)
    return model


def scheme_arguments_for(model: ExitModel, precision: str) -> dict[str, dict]:
    """Returns the arguments that a precision needs: the gains of int8 inputs, or a mix of all schemes."""
    programs, random = Programs.of(model), np.random.default_rng(2)
    if precision == "int8-a8":
        items = [Item(random.integers(0, 200, 20), np.zeros(20, int), None, np.arange(20) > 4) for _ in range(32)]
        return {"input_gains": input_gains(programs, items)}
    if precision == "mixed":
        return {
            "matrix_schemes": dict(zip([*named_linears(programs), "embeddings.word"], ["int4", "int8", "fp32"] * 4))
        }
    return {}


def export(model: ExitModel, folder: Path, precision: str, layout: str, target: str = "iOS18") -> Manifest:
    """Writes the Core ML programs for 16 and 32 tokens, and returns the manifest."""
    task = model.task
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "task": task,
            "data": {"max_length": 32},
            "qa": {"window": 32, "stride": 4, "max_question": 8},
            "exits": {"uncertainty": model.uncertainty},
            "quantize": {"scheme": "mixed", "budget_mb": 1} if precision == "mixed" else {},
            "export": {
                "max_length": 32,
                "coreml_buckets": [16, 32],
                "coreml_precision": precision,
                "coreml_layout": layout,
                "coreml_target": target,
            },
        }
    )
    programs = export_coreml(model, folder, recipe, **scheme_arguments_for(model, precision))
    shape = ModelShape(
        layers=2,
        hidden_size=64,
        heads=4,
        intermediate_size=128,
        vocab_size=200,
        parameters=1,
        exit_layers=[1, 2],
        head=model.head_kind,
    )
    return Manifest(
        name="tiny", task=task, max_length=32, model=shape, scheme="int8", embeddings_scheme="int8",
        programs=programs, speeds={}, files=[],
        tokenizer=Tokenizer(vocab_size=200, lowercase=True, pad_id=0, unk_id=1, cls_id=2, sep_id=3), provenance={},
        qa=QAOptions(window=32, stride=4, max_question=8, max_answer=8, allow_no_answer=False),
        exits=ExitOptions(uncertainty=model.uncertainty),
    )  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def exported(request, tmp_path_factory):
    """A model, the folder with its Core ML programs, and the manifest."""
    task, precision, layout = request.param
    model, folder = tiny_model(task), tmp_path_factory.mktemp("bundle")
    return model, folder, export(model, folder, precision, layout)


def test_a_faithful_export_passes(exported):
    model, folder, manifest = exported
    steps = []
    checks = check_coreml(folder, manifest, vectors(model), lambda *step: steps.append(step[1:]))
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 2 * (3 + 2 * 3) and steps[-1] == (13, 13)  # 5 inputs fit 16 tokens, 8 fit 32
    assert all(check.value == 1.0 for check in checks if check.metric.startswith("same_answer"))
    checks = check_against_model(model, folder, manifest)
    assert [check for check in checks if not check.passed] == []
    # Buckets times precisions, for embed and two segments. A regression's segment has no uncertainty of its own.
    assert len(checks) == 2 * 2 * (1 + 2 * (1 if model.task == "regression" else 2))


def test_an_altered_weight_and_another_model_fail(exported, tmp_path):
    model, folder, manifest = exported
    copy = tmp_path / "bundle"
    shutil.copytree(folder, copy)
    weights = copy / "coreml/segment_1.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(weights.read_bytes())
    matrix = compress(model.encoder.layers[1].ffn_in.weight.detach(), manifest.programs[0].precision)
    raw = (matrix if isinstance(matrix, np.ndarray) else matrix.data).tobytes()
    assert raw in data
    data[data.find(raw) + 1001] ^= 0x40
    weights.write_bytes(data)
    failed = {check.program for check in check_against_model(model, copy, manifest) if not check.passed}
    # One int8 weight off by 64 steps makes less noise than rounding the others. A float16's exponent makes more.
    assert failed == ({"segment_1"} if manifest.programs[0].precision == "fp16" else set())

    shutil.copytree(folder / "coreml/segment_0.mlpackage", copy / "coreml/segment_1.mlpackage", dirs_exist_ok=True)
    failed = {check.program for check in check_coreml(copy, manifest, vectors(model)) if not check.passed}
    assert failed == {"segment_1"}
    assert {check.program for check in check_against_model(model, copy, manifest) if not check.passed} == {"segment_1"}


@pytest.fixture(scope="module")
def structures():
    """The converted structures, so that every scheme's test can put its own weights into them."""
    return {}


SCHEME_CASES = [
    *(
        (scheme, "iOS18", task, layout)
        for scheme in ("int4", "palette4")
        for task in ("qa", "classification")
        for layout in ("standard", "ane")
    ),
    ("palette6", "iOS18", "qa", "ane"),
    ("palette6", "iOS18", "classification", "standard"),
    ("palette6-per-tensor", "iOS18", "qa", "standard"),
    ("palette6-per-tensor", "iOS18", "classification", "ane"),
    ("palette4-per-tensor", "iOS16", "qa", "ane"),
    ("palette6-per-tensor", "iOS16", "qa", "ane"),
    *(
        ("int8-a8", target, task, layout)
        for target, task, layout in (("iOS18", "qa", "standard"), ("iOS17", "classification", "ane"))
    ),
    *(("mixed", "iOS18", task, layout) for task, layout in (("qa", "ane"), ("classification", "standard"))),
]


@pytest.mark.parametrize(("scheme", "target", "task", "layout"), SCHEME_CASES, ids=map("-".join, SCHEME_CASES))
def test_every_scheme_passes_shares_weights_and_shows_an_altered_weight(
    structures, monkeypatch, tmp_path, scheme, target, task, layout
):
    def convert_once(program, length, *options):
        rounds = options[1] == "int8-a8"  # these structures have operators of their own
        key = (task, layout, program.name, length, options[0], rounds)
        if key not in structures:
            structures[key] = convert_structure(program, length, *options)
        return structures[key]

    monkeypatch.setattr(coreml, "convert_structure", convert_once)
    model = tiny_model(task)
    manifest = export(model, tmp_path, scheme, layout, target)
    assert {program.precision for program in manifest.programs} == {scheme}
    arguments = scheme_arguments_for(model, scheme)
    conformance = vectors(model).model_copy(
        update={"programs": make_fingerprints(model, manifest.programs, layout, **arguments)}
    )
    checks = check_coreml(tmp_path, manifest, conformance) + check_against_model(model, tmp_path, manifest)
    assert [check for check in checks if not check.passed] == []
    fingerprints = [check for check in checks if check.metric.startswith("fingerprint_snr")]
    assert len(fingerprints) == 2 * 3 and min(check.value for check in fingerprints) > 100

    segment = program_modules(model, layout, **arguments)[2]
    matrices = sum(
        stored_bytes(tuple(weight.shape), segment.schemes.get(name, scheme))
        for name, weight in segment.weights(16).items()
    )
    for package in {program.file for program in manifest.programs if program.name == "segment_1"}:
        weights = (tmp_path / package / WEIGHTS_FOLDER / "weight.bin").stat().st_size
        # Stored once, with 64 bytes of description for some 20 weights of some two parts each.
        assert matrices < weights < matrices + 64 * 80

    # Fingerprints tell a model from one that differs in a single weight.
    with torch.no_grad():
        model.encoder.layers[1].ffn_in.weight[3, 5] *= -1
    other = make_fingerprints(model, manifest.programs, layout, **arguments)
    failed = {
        check.program
        for check in check_coreml(tmp_path, manifest, conformance.model_copy(update={"programs": other}))
        if not check.passed
    }
    assert failed == {"segment_1"}


def test_a_missing_program_an_unknown_precision_and_missing_inputs_are_refused(exported):
    model, folder, manifest = exported
    incomplete = manifest.model_copy(
        update={"programs": [program for program in manifest.programs if program.name != "segment_1"]}
    )
    with pytest.raises(UserError, match="no Core ML program segment_1 for length 16"):
        check_coreml(folder, incomplete, vectors(model))
    unknown = [program.model_copy(update={"precision": "int3"}) for program in manifest.programs]
    with pytest.raises(
        UserError, match="precision: 'int3' is not known to this version, which knows fp32, fp16, int8, "
    ):
        check_coreml(folder, manifest.model_copy(update={"programs": unknown}), vectors(model))
    long = vectors(model)
    long = long.model_copy(update={"cases": [case for case in long.cases if len(case.windows[0].input_ids) > 32]})
    with pytest.raises(UserError, match="no conformance input fits"):
        check_coreml(folder, manifest, long)


def test_signal_to_noise():
    reference = np.array([3.0, 4.0])
    assert signal_to_noise_db(reference, reference + [0.3, 0.4]) == pytest.approx(20.0)
    assert signal_to_noise_db(reference, reference) == MAX_DB
    assert signal_to_noise_db(reference, np.array([3.0, np.nan])) == -MAX_DB
    assert signal_to_noise_db(np.zeros(2), reference) == -MAX_DB
    with pytest.raises(ValueError, match="differ"):
        signal_to_noise_db(reference, np.zeros(3))


def test_json_of_checks():
    passed, failed = (
        Check.at_least("embed", "coreml", "snr_db", 61.0, 60.0),
        Check.at_least("embed", "coreml", "snr_db", 6.0, 60.0),
    )

    def to_json(*checks: Check) -> dict:
        return Verification(checks=list(checks), warnings=[], mac=MacReport(ran=False)).to_json()

    assert to_json(passed)["passed"] and not to_json(passed, failed)["passed"] and not to_json()["passed"]
    assert to_json(failed)["checks"] == [
        {"program": "embed", "backend": "coreml", "metric": "snr_db", "value": 6.0, "floor": 60.0, "passed": False}
    ]
