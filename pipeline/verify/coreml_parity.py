"""Core ML's programs against the model they came from: what was saved, packages or ExecuTorch files with Core ML's delegate, evaluated in coremltools'
semantics on any machine.

Two checks. `check_coreml` needs the bundle alone. The logits in its conformance vectors come from the model quantized for ExecuTorch, so that two
ways of rounding are compared and the floors are low; the fingerprints in them are of each program by itself, and strict
(`pipeline.verify.coreml_fingerprints`). `check_against_model` has the trained model at hand and compares each program with the
module that it was converted from, so that nothing but the rounding of that program is between the two and the floors are high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.bundle.conformance import Conformance, WindowVector
from pipeline.bundle.exit_rule import change_uncertainty
from pipeline.bundle.manifest import Manifest, Program, TensorSpec
from pipeline.data.inputs import MASKED
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.names import Backend
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import get_task
from pipeline.verify.checks import Check, signal_to_noise_db
from pipeline.verify.coreml_fingerprints import Run, check_fingerprints
from pipeline.verify.evaluator.delegate import DelegateFile, load_delegate_file
from pipeline.verify.evaluator.evaluator import AGAIN, Evaluation, Fault, Package, Precision, load_package, watch
from pipeline.verify.floors import module_floors, vector_floors

__all__ = ["check_against_model", "check_coreml", "signal_to_noise_db"]

WINDOWS = 8


NAMES: dict[Backend, str] = {"coreml": "Core ML", "executorch-coreml": "ExecuTorch's Core ML"}


class CoreMLPrograms:
    """The programs of a bundle for one length that Core ML computes, of one backend; `evaluate` runs one of them."""

    def __init__(self, bundle: Path, manifest: Manifest, length: int, evaluate: Run, backend: Backend = "coreml"):
        self.evaluate, self.change = evaluate, manifest.uncertainty == "change"
        entries = {p.name: p for p in manifest.programs if p.backend == backend and length in (p.lengths or ())}
        names = ["embed", *(f"segment_{index}" for index in range(manifest.segments))]
        if missing := [name for name in names if name not in entries]:
            raise UserError(
                f"no {NAMES[backend]} program {missing[0]} for length {length}; export the bundle again",
                file=bundle,
                field="programs",
            )
        self.embed, *self.segments = [entries[name] for name in names]
        self.faults: dict[str, list[Fault | None]] = {}  # of a program's runs so far, those whose inputs were finite

    def run(self, program: Program, inputs: dict[str, np.ndarray], precision: Precision) -> dict[str, np.ndarray]:
        """One program's outputs by name; what the program does not take is not passed on.

        Hidden states go in and come out as [1, length, hidden_size], whatever the layout of the program.
        """
        inputs = {tensor.name: in_layout(inputs[tensor.name], tensor) for tensor in program.inputs}
        evaluation = self.evaluate(program, inputs, precision)
        if all(np.isfinite(value).all() for value in inputs.values()):
            self.faults.setdefault(program.name, []).append(next(iter(evaluation.faults), None))
        return {
            name: value[:, :, 0].swapaxes(1, 2) if value.ndim == 4 else value
            for name, value in evaluation.outputs.items()
        }

    def run_all(self, inputs: dict[str, np.ndarray], precision: Precision) -> list[dict[str, np.ndarray]]:
        """The loop without exits: every segment's outputs, by change with the `uncertainty` that is the host's.

        A program's first output is the next one's `hidden`.
        """
        hidden = self.run(self.embed, inputs, precision)[self.embed.outputs[0].name]
        outputs = []
        for segment in self.segments:
            outputs.append(self.run(segment, {**inputs, "hidden": hidden}, precision))
            hidden = outputs[-1][segment.outputs[0].name]
            if self.change:
                outputs[-1]["uncertainty"] = np.array(
                    [change_uncertainty([float(each["logits"][0, 0]) for each in outputs])]
                )
        return outputs


def in_layout(value: np.ndarray, tensor: TensorSpec) -> np.ndarray:
    """An input in the dimensions that a program wants: hidden states with channels first in the layout "ane", a number a token otherwise."""
    if tensor.name == "hidden" and len(tensor.shape) == 4 and value.ndim == 3:
        return value.swapaxes(1, 2)[:, :, None]
    return value.reshape(tensor.shape)


def runner(bundle: Path, backend: Backend) -> Run:
    """What runs a bundle's programs of a backend from their files; each file is read once, when it is first needed.

    It raises UserError when a file cannot be read or evaluated, or what is in it is not the manifest's program.
    """
    packages: dict[str, Package] = {}
    files: dict[str, DelegateFile] = {}

    def run_package(program: Program, inputs: dict[str, np.ndarray], precision: Precision) -> Evaluation:
        if program.file not in packages:
            packages[program.file] = load_package(bundle / program.file)
        check_signature(packages[program.file], program)
        return watch(packages[program.file], program.method, inputs, precision)

    def run_method(program: Program, inputs: dict[str, np.ndarray], precision: Precision) -> Evaluation:
        if program.file not in files:
            files[program.file] = load_delegate_file(bundle / program.file)
        return files[program.file].run(program, inputs, precision)

    return {"coreml": run_package, "executorch-coreml": run_method}[backend]


def check_signature(package: Package, program: Program) -> None:
    """Raises UserError unless the package's function takes and gives what the manifest says."""
    function = package.function(program.method)
    for side, said, found in (
        ("inputs", program.inputs, function.inputs),
        ("outputs", program.outputs, function.outputs),
    ):
        expected, got = ({t.name: f"{t.dtype} {list(t.shape)}" for t in tensors} for tensors in (said, found))
        for name in {**expected, **got}:
            if expected.get(name) != got.get(name):
                raise UserError(
                    f"{function.name} has {got.get(name, 'no such tensor')}, the manifest says {expected.get(name, 'that there is none')}; {AGAIN}",
                    file=package.path,
                    field=f"{program.name}.{side}.{name}",
                )


def lengths_of(manifest: Manifest, backend: Backend = "coreml") -> list[int]:
    """The buckets of the bundle's programs of that backend, ascending."""
    return sorted(
        {length for program in manifest.programs if program.backend == backend for length in program.lengths or ()}
    )


def padded_inputs(
    input_ids: Sequence[int], answer_mask: Sequence[int] | None, length: int, pad_id: int
) -> dict[str, np.ndarray]:
    """What the programs of a bucket take for a shorter input: padding behind it, which no token attends to and which is no answer.

    Returns:
        input_ids [1, length] int32, attention_bias [1, 1, length] and answer_bias [1, length] float32 (-1e4 everywhere without a mask).
    """
    ids = np.full((1, length), pad_id, dtype=np.int32)
    ids[0, : len(input_ids)] = input_ids
    attention_bias = np.full((1, 1, length), MASKED, dtype=np.float32)
    attention_bias[0, 0, : len(input_ids)] = 0.0
    answer_bias = np.full((1, length), MASKED, dtype=np.float32)
    if answer_mask is not None:
        answer_bias[0, : len(input_ids)][np.asarray(answer_mask, dtype=bool)] = 0.0
    return {"input_ids": ids, "attention_bias": attention_bias, "answer_bias": answer_bias}


def check_coreml(
    bundle: str | Path,
    manifest: Manifest,
    conformance: Conformance,
    on_step: OnStep = silent,
    windows: int = WINDOWS,
    backend: Backend = "coreml",
) -> list[Check]:
    """Runs conformance inputs through the bundle's programs of every bucket that Core ML computes, in simulated float16.

    `check_fingerprints` comes first, for bundles that have them, and names the program that is at fault. Then the programs are chained, `embed`
    first, so that a fault shows in what follows, too. For every program and bucket, better when higher:
        `finite_float16_LENGTH`: share of windows in which no operator's result overflows float16 or is NaN.
    For every segment and bucket:
        `logits_snr_db_LENGTH`: the vectors' logits over the difference, all windows together. Logits are taken less their mean over a
            window, which the softmax does not see; with it a common offset would pass for signal. A regression's one is taken as it is.
        `same_answer_LENGTH`: share of windows with the same label, or the same best span, or one that is as good up to the noise; for
            regression, with the same number up to the noise.
        `uncertainty_agreement_LENGTH`: 1 - the mean difference of the uncertainties.

    The vectors have int8 activations, these programs do not, and each rounds weights its own way: the floors say "the same model", not
    "the same bits" (see `pipeline.schemes` for what was measured). `check_against_model` is the strict one.

    Args:
        windows: so many inputs a bucket, from the shortest that fits to the longest.
        backend: "coreml" for the packages, "executorch-coreml" for the methods that ExecuTorch hands to Core ML.

    Raises:
        UserError: when a file cannot be read or evaluated, or no input fits any bucket.
    """
    bundle = Path(bundle)
    every = sorted(
        (window for case in conformance.cases for window in case.windows), key=lambda window: len(window.input_ids)
    )
    buckets = {
        length: spread([w for w in every if len(w.input_ids) <= length], windows)
        for length in lengths_of(manifest, backend)
    }
    total = sum(len(chosen) for chosen in buckets.values())
    if total == 0:
        raise UserError(
            "no conformance input fits a Core ML bucket; add a longer bucket to export.coreml_buckets", file=bundle
        )
    done, run, step = 0, runner(bundle, backend), f"{NAMES[backend]} against the model"
    checks = (
        []
        if conformance.programs is None
        else check_fingerprints(manifest, conformance.programs, run, on_step, backend)
    )
    for length, chosen in buckets.items():
        if not chosen:  # nothing in the bundle is as short as that
            continue
        programs = CoreMLPrograms(bundle, manifest, length, run, backend)
        outputs = []
        for window in chosen:
            inputs = padded_inputs(window.input_ids, window.answer_mask, length, manifest.tokenizer.pad_id)
            outputs.append(programs.run_all(inputs, "float16"))
            done += 1
            on_step(step, done, total)
        checks += [check_finite(name, backend, length, faults) for name, faults in programs.faults.items()]
        for index, program in enumerate(programs.segments):
            checks += check_segment(program, manifest, length, chosen, index, [each[index] for each in outputs])
    return checks


def check_finite(program: str, backend: Backend, length: int, faults: list[Fault | None]) -> Check:
    """The share of runs without a fault; the note has the first run's that has one."""
    share = faults.count(None) / len(faults)
    note = next((str(fault) for fault in faults if fault), "")
    return Check(program, backend, f"finite_float16_{length}", share, 1.0, share == 1.0, note)


def spread(windows: list[WindowVector], count: int) -> list[WindowVector]:
    """`count` of them at even distances, the first and the last among them."""
    if len(windows) <= count:
        return windows
    return [windows[round(at * (len(windows) - 1) / max(count - 1, 1))] for at in range(count)]


def check_segment(
    program: Program,
    manifest: Manifest,
    length: int,
    windows: list[WindowVector],
    index: int,
    outputs: list[dict[str, np.ndarray]],
) -> list[Check]:
    """One segment's checks; `outputs` are the program's for `windows`, in order."""
    task, floors = get_task(manifest.task), vector_floors(program, manifest)
    names, level = task.exit_outputs, task.signal_level
    expected = [
        [np.asarray(window.exits[index].outputs[name], dtype=np.float32) for name in names] for window in windows
    ]
    # What is behind a window is padding; for question answering it has logits, too. A classifier's logits are no more than its labels.
    got = [[output[name][0, : len(each)] for name, each in zip(names, of)] for output, of in zip(outputs, expected)]
    signal, value = (
        np.concatenate([each - each.mean() if level is None else each for window in part for each in window])
        for part in (expected, got)
    )
    # Two answers that the vectors tell apart by less than this are equally right: it is the noise that the floor lets pass.
    slack = 2.0 * (level or float(np.sqrt(np.square(signal).mean()))) * 10 ** (-floors.logits_db / 20)
    same = [same_answer(manifest, *each, slack) for each in zip(windows, expected, got)]
    difference = [
        abs(float(output["uncertainty"][0]) - window.exits[index].uncertainty)
        for window, output in zip(windows, outputs)
    ]
    return [
        at_least(program, f"logits_snr_db_{length}", signal_to_noise_db(signal, value, level), floors.logits_db),
        at_least(program, f"same_answer_{length}", float(np.mean(same)), floors.same_answer),
        at_least(
            program, f"uncertainty_agreement_{length}", finite(1.0 - float(np.mean(difference))), floors.uncertainty
        ),
    ]


def same_answer(
    manifest: Manifest, window: WindowVector, expected: list[np.ndarray], got: list[np.ndarray], slack: float
) -> bool:
    """Whether the answer of `got` is the best of `expected` or scores no more than `slack` below it there."""
    if not all(np.isfinite(each).all() for each in got):
        return False
    mask = None if window.answer_mask is None else np.asarray(window.answer_mask, dtype=bool)
    return get_task(manifest.task).same_best(mask, tuple(expected), tuple(got), slack, manifest.answer_context)


def at_least(program: Program, metric: str, value: float, floor: float) -> Check:
    return Check(program.name, program.backend, metric, value, floor, passed=value >= floor)


def finite(value: float) -> float:
    """The number, or -1 in place of NaN and infinity, which JSON cannot say."""
    return value if np.isfinite(value) else -1.0


@torch.no_grad()
def check_against_model(
    model: ExitModel,
    bundle: str | Path,
    manifest: Manifest,
    on_step: OnStep = silent,
    seed: int = 0,
    backend: Backend = "coreml",
) -> list[Check]:
    """Compares every program that Core ML computes with the module it was converted from, in float32 and in simulated float16.

    Each program is given the module's own inputs (hidden states from torch in float32), so that its number is its own. The inputs are
    seeded random tokens that fill the bucket, half of it, and a quarter. For every program, bucket and precision of evaluation:
        `snr_db_LENGTH_PRECISION`: the worst of its outputs but the uncertainty, over all inputs; padding does not count.
        `uncertainty_agreement_LENGTH_PRECISION`: 1 - the greatest difference (segments only).

    Args:
        model: the trained model that the bundle was exported from.
        backend: as of `check_coreml`.

    Raises:
        UserError: when a file cannot be read or evaluated.
    """
    bundle, reference, random = Path(bundle), Programs.of(model), np.random.default_rng(seed)
    lengths, checks, done, run = lengths_of(manifest, backend), [], 0, runner(bundle, backend)
    for length in lengths:
        programs = CoreMLPrograms(bundle, manifest, length, run, backend)
        runs = [
            reference_run(reference, manifest, length, size, random)
            for size in (length, length // 2, max(length // 4, 2))
        ]
        for at, program in enumerate((programs.embed, *programs.segments)):
            steps = [run[at] for run in runs]
            floors = module_floors(program, manifest)
            for precision, floor in floors.module_db.items():
                outputs = [programs.run(program, step.inputs, precision) for step in steps]
                checks += check_program(
                    program,
                    f"{length}_{precision}",
                    steps,
                    outputs,
                    floor,
                    floors.module_uncertainty,
                    get_task(manifest.task).signal_level,
                )
            done += 1
            on_step(f"{NAMES[backend]} against its modules", done, len(lengths) * (1 + len(programs.segments)))
    return checks


@dataclass(frozen=True)
class Step:
    """One program's inputs by name, and what torch's module gives for them, in order. `size` tokens are real, the rest is padding."""

    size: int
    inputs: dict[str, np.ndarray]
    outputs: list[np.ndarray]


def reference_run(
    reference: Programs, manifest: Manifest, length: int, size: int, random: np.random.Generator
) -> list[Step]:
    """A random input of `size` tokens in a bucket, through `embed` and every segment."""
    ids = random.integers(0, manifest.model.vocab_size, size)
    mask = np.arange(size) >= size // 4  # the rest stands for [CLS] and the question
    inputs = padded_inputs(ids.tolist(), mask.tolist(), length, manifest.tokenizer.pad_id)
    hidden = reference.embed(torch.from_numpy(inputs["input_ids"]))
    steps = [Step(size, inputs, [hidden.numpy()])]
    extra = [torch.from_numpy(inputs["answer_bias"])] if get_task(reference.task).uses_answer_mask else []
    for segment in reference.segments:
        outputs = segment(hidden, torch.from_numpy(inputs["attention_bias"]), *extra)
        steps.append(Step(size, {**inputs, "hidden": hidden.numpy()}, [each.numpy() for each in outputs]))
        hidden = outputs[0]
    return steps


def check_program(
    program: Program,
    suffix: str,
    steps: list[Step],
    outputs: list[dict[str, np.ndarray]],
    floor: float,
    uncertainty_floor: float,
    level: float | None,
) -> list[Check]:
    """One program's checks at one length and precision; `outputs` are the program's for `steps`, `level` is that of its logits."""
    ratios, difference = [], None
    for at, tensor in enumerate(program.outputs):
        expected, got = [step.outputs[at] for step in steps], [output[tensor.name] for output in outputs]
        if tensor.name == "uncertainty":
            difference = float(np.abs(np.concatenate(expected) - np.concatenate(got)).max())
            continue
        if tensor.name != "logits":  # all others have a row or a number for each token
            expected = [each[:, : step.size] for each, step in zip(expected, steps)]
            got = [each[:, : step.size] for each, step in zip(got, steps)]
        ratios.append(signal_to_noise_db(flat(expected), flat(got), level if tensor.name == "logits" else None))
    checks = [at_least(program, f"snr_db_{suffix}", min(ratios), floor)]
    if difference is not None:
        agreement = finite(1.0 - difference)
        checks.append(at_least(program, f"uncertainty_agreement_{suffix}", agreement, uncertainty_floor))
    return checks


def flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays])
