"""Compares each saved program that Core ML computes with the PyTorch module it was converted from.

This needs the trained model. Only the rounding of one program lies between the two sides, so the floors are high.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.bundle.manifest import Manifest, Program
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.names import Backend
from pipeline.schemes import CoreMLFloors
from pipeline.support.progress import OnStep, silent
from pipeline.tasks import get_task
from pipeline.verify.checks import Check
from pipeline.verify.comparison import check_outputs, check_uncertainty
from pipeline.verify.coreml_programs import (
    BACKEND_NAMES,
    CoreMLPrograms,
    bundle_buckets,
    padded_inputs,
    program_runner,
)
from pipeline.verify.evaluator.files import SavedFiles
from pipeline.verify.floors import module_floors
from pipeline.verify.threads import one_thread


@one_thread()
@torch.no_grad()
def check_against_model(
    model: ExitModel,
    bundle: str | Path,
    manifest: Manifest,
    on_step: OnStep = silent,
    seed: int = 0,
    backend: Backend = "coreml",
    files: SavedFiles | None = None,
) -> list[Check]:
    """Compares every program of a backend with its module, in float32 and in simulated float16.

    Each program gets the module's own inputs (hidden states in float32 from torch), so a fault shows only where it is.
    The inputs are seeded random tokens that fill the bucket, a half of it, and a quarter. The checks of a program,
    bucket and precision of the evaluation:
        `snr_db_LENGTH_PRECISION`: signal to noise of the worst output other than the uncertainty, over all inputs
            without their padding.
        `uncertainty_agreement_LENGTH_PRECISION`: 1 - the greatest difference (segments only).

    Args:
        model: the trained model that the bundle was exported from.
        files: the bundle's files, where other checks have read some of them.

    Raises:
        UserError: if a file cannot be read or evaluated.
    """
    bundle, reference, random = Path(bundle), Programs.of(model), np.random.default_rng(seed)
    lengths, run_program = bundle_buckets(manifest, backend), program_runner(bundle, backend, files)
    checks: list[Check] = []
    done = 0
    for length in lengths:
        programs = CoreMLPrograms(bundle, manifest, length, run_program, backend)
        sizes = (length, length // 2, max(length // 4, 2))
        runs = [reference_run(reference, manifest, length, size, random) for size in sizes]
        for index, program in enumerate((programs.embed, *programs.segments)):
            calls = [run[index] for run in runs]
            floors = module_floors(program, manifest)
            for precision in floors.module_db:
                outputs = [programs.run(program, call.inputs, precision) for call in calls]
                checks += check_program(program, manifest, length, precision, calls, outputs, floors)
            done += 1
            total = len(lengths) * (1 + len(programs.segments))
            on_step(f"{BACKEND_NAMES[backend]} against its modules", done, total)
    return checks


@dataclass(frozen=True)
class ModuleCall:
    """The inputs of one program, and what its module computes from them.

    Attributes:
        size: the number of real tokens; the rest is padding.
        inputs: by name.
        outputs: in the module's order.
    """

    size: int
    inputs: dict[str, np.ndarray]
    outputs: list[np.ndarray]


def reference_run(
    reference: Programs, manifest: Manifest, length: int, size: int, random: np.random.Generator
) -> list[ModuleCall]:
    """Runs `size` random tokens, padded to `length`, through `embed` and every segment."""
    ids = random.integers(0, manifest.model.vocab_size, size)
    mask = np.arange(size) >= size // 4  # the first quarter stands for [CLS] and the question
    inputs = padded_inputs(ids.tolist(), mask.tolist(), length, manifest.tokenizer.pad_id)
    hidden = reference.embed(torch.from_numpy(inputs["input_ids"]))
    calls = [ModuleCall(size, inputs, [hidden.numpy()])]
    extra = [torch.from_numpy(inputs["answer_bias"])] if get_task(reference.task).uses_answer_mask else []
    for segment in reference.segments:
        outputs = segment(hidden, torch.from_numpy(inputs["attention_bias"]), *extra)
        segment_inputs = {**inputs, "hidden": hidden.numpy()}
        calls.append(ModuleCall(size, segment_inputs, [output.numpy() for output in outputs]))
        hidden = outputs[0]
    return calls


def check_program(
    program: Program,
    manifest: Manifest,
    length: int,
    precision: Literal["float32", "float16"],
    calls: Sequence[ModuleCall],
    outputs: Sequence[dict[str, np.ndarray]],
    floors: CoreMLFloors,
) -> list[Check]:
    """Checks one program at one length and precision; `outputs` is what the program gave for each of `calls`."""

    def joined(name: str, arrays: Iterable[np.ndarray]) -> np.ndarray:
        # All outputs but these two have a row or a number for each token; those of the padding do not count.
        per_token = name not in ("logits", "uncertainty")
        parts = [array[:, : call.size] if per_token else array for array, call in zip(arrays, calls)]
        return np.concatenate([part.ravel() for part in parts])

    names = [tensor.name for tensor in program.outputs]
    expected = {name: joined(name, [call.outputs[index] for call in calls]) for index, name in enumerate(names)}
    actual = {name: joined(name, [run[name] for run in outputs]) for name in names}
    level, uncertainty_metric = get_task(manifest.task).signal_level, f"uncertainty_agreement_{length}_{precision}"
    return [
        check_outputs(program, f"snr_db_{length}_{precision}", expected, actual, floors.module_db[precision], level),
        *check_uncertainty(program, uncertainty_metric, expected, actual, floors.module_uncertainty),
    ]
