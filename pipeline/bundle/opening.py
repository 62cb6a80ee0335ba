"""Opens a bundle: reads its manifest and its tokenizer, and checks that they fit each other and this runner."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from pipeline.bundle.exit_rule import FULL_DEPTH
from pipeline.bundle.manifest import MANIFEST_FILE, Manifest, Program, TensorSpec, read_manifest
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.names import Backend
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

BACKEND: Backend = "executorch"
DEFAULT_SPEED = "exact"
FULL_SPEED = "full"  # runs every segment, whatever the uncertainty; the conformance vectors use the name too

RUNS_FOLDER = Path("runs")  # where `pocketbert run` writes its results unless told otherwise
BUNDLE_FOLDER = "bundle"  # of a run's results
MAX_BUNDLES_SHOWN = 8

_DTYPES = {"input_ids": ("int64", "int32")}  # every other tensor is float32

Shape = Sequence[Union[int, str]]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest, files and vocabulary fit each other."""

    path: Path
    manifest: Manifest
    tokenizer: WordPieceTokenizer

    @classmethod
    def open(cls, path: str | Path, check_files: bool = True) -> Bundle:
        """Reads and checks a bundle. Loads no program.

        Args:
            path: the bundle's folder.
            check_files: whether to compare every file with its size and SHA-256 in the manifest. Without that, a
                missing program is only found when it is loaded.

        Raises:
            UserError: naming the file and the field. The folder is not a bundle, its format is unknown, a file is
                missing or altered, the vocabulary does not fit, or a program has an input, a type or a shape that this
                runner does not know.
        """
        path = Path(path)
        manifest = read_manifest(path, check_files)
        vocab = path / manifest.tokenizer.vocab_file
        tokenizer = WordPieceTokenizer.from_vocab(vocab, manifest.tokenizer.lowercase)
        _check_tokenizer(path, manifest, tokenizer)
        _check_options(path / MANIFEST_FILE, manifest)
        _check_programs(path / MANIFEST_FILE, manifest)
        return cls(path, manifest, tokenizer)


def find_bundle(path: str | Path) -> Path:
    """Returns the folder of the bundle that a user means.

    Args:
        path: a bundle's folder, the folder of a run that made one ("runs/NAME"), or the bare NAME of such a run. "~"
            stands for the home folder.

    Raises:
        UserError: there is no bundle; the message lists the bundles in runs/.
    """
    path = Path(path).expanduser()
    found = look_for_bundle(path)
    if found is not None:
        return found
    bundles = sorted(str(file.parent.parent) for file in RUNS_FOLDER.glob(f"*/{BUNDLE_FOLDER}/{MANIFEST_FILE}"))
    shown = ", ".join(bundles[:MAX_BUNDLES_SHOWN]) + (", ..." if len(bundles) > MAX_BUNDLES_SHOWN else "")
    here = f"; {RUNS_FOLDER}/ has bundles of: {shown}" if bundles else ""
    wrong = f"is not a bundle folder, {MANIFEST_FILE} is missing" if os.path.isdir(path) else "is not a bundle folder"
    raise UserError(f"{wrong}; give the folder that `pocketbert run` wrote (OUT/bundle){here}", file=path)


def look_for_bundle(path: Path) -> Path | None:
    """Returns what `find_bundle` does, and None where there is no bundle."""
    places = [path, path / BUNDLE_FOLDER]
    if len(path.parts) == 1:
        places.append(RUNS_FOLDER / path / BUNDLE_FOLDER)
    for place in places:
        if os.path.isfile(place / MANIFEST_FILE):  # False, and no OSError, for what cannot be a path
            return place
    return None


def speed_thresholds(manifest: Manifest, speed: str | float) -> list[float]:
    """Returns the uncertainty threshold of every exit.

    Args:
        manifest: the manifest of the bundle.
        speed: the name of a calibrated speed, "full" for every segment, or one threshold for all exits. An input leaves
            after the first segment whose uncertainty is below its threshold. So 0 means full depth, and anything above
            1 the first exit (the "speed" of FastBERT, Liu et al. 2020).

    Raises:
        UserError: the name is unknown, or the number is negative or not finite.
    """
    if isinstance(speed, str) and speed in manifest.speeds:
        return list(manifest.speeds[speed].thresholds)
    if speed == FULL_SPEED:
        return [FULL_DEPTH] * manifest.segments
    names = ", ".join((*manifest.speeds, FULL_SPEED))
    way_out = f"this bundle has {names}; or give an uncertainty threshold, 0 (full depth) to 1"
    try:
        threshold = float(speed)
    except (ValueError, OverflowError):
        raise UserError(f"{speed!r} is not known; {way_out}", field="speed") from None
    if not math.isfinite(threshold) or threshold < 0:
        raise UserError(f"{speed} is not a threshold; {way_out}", field="speed")
    return [threshold] * manifest.segments


def default_speed(manifest: Manifest) -> str:
    """Returns the speed to use when none is given: "exact" where it was calibrated, else full depth."""
    return DEFAULT_SPEED if DEFAULT_SPEED in manifest.speeds else FULL_SPEED


def _check_tokenizer(bundle: Path, manifest: Manifest, tokenizer: WordPieceTokenizer) -> None:
    expected, vocab = manifest.tokenizer, bundle / manifest.tokenizer.vocab_file
    sizes = {"tokenizer.vocab_size": expected.vocab_size, "model.vocab_size": manifest.model.vocab_size}
    for field, size in sizes.items():
        if tokenizer.vocab_size != size:
            raise UserError(
                f"holds {tokenizer.vocab_size} tokens, the manifest's {field} says {size}; "
                "the vocabulary belongs to another bundle: export it again",
                file=vocab,
            )
    for name in ("pad_id", "unk_id", "cls_id", "sep_id"):
        actual_id, expected_id = getattr(tokenizer, name), getattr(expected, name)
        if actual_id != expected_id:
            raise UserError(
                f"has the token at {actual_id}, the manifest says {expected_id}; "
                "the vocabulary belongs to another bundle: export it again",
                file=vocab,
                field=f"tokenizer.{name}",
            )


def _check_options(file: Path, manifest: Manifest) -> None:
    """Checks what the manifest's types cannot express: that its parts agree with each other."""
    task = get_task(manifest.task)
    if problem := task.manifest_problem(manifest.answer_context):
        field, message = problem
        raise UserError(message, file=file, field=field)
    if manifest.label_range is not None and not manifest.label_range.width > 0:
        raise UserError("minimum is not below maximum; export the bundle again", file=file, field="label_range")
    if manifest.uncertainty not in task.uncertainties:
        raise UserError(
            f"{manifest.uncertainty!r} is no measure for {manifest.task}; export the bundle again",
            file=file,
            field="exits.uncertainty",
        )
    if manifest.qa is not None and manifest.qa.window > manifest.max_length:
        raise UserError(
            f"{manifest.qa.window} is more than max_length, {manifest.max_length}; export the bundle again",
            file=file,
            field="qa.window",
        )
    if len(manifest.exits.temperatures) not in (0, manifest.segments):
        raise UserError(
            f"{len(manifest.exits.temperatures)} temperatures for {manifest.segments} segments; "
            "export the bundle again",
            file=file,
            field="exits.temperatures",
        )
    for name, speed in manifest.speeds.items():
        if len(speed.thresholds) != manifest.segments:
            raise UserError(
                f"{len(speed.thresholds)} thresholds for {manifest.segments} segments; export the bundle again",
                file=file,
                field=f"speeds.{name}.thresholds",
            )


def _check_programs(file: Path, manifest: Manifest) -> None:
    """Checks that ExecuTorch has `embed` and every segment, with tensors that this runner can give and read."""
    hidden: Shape = (1, "length", manifest.model.hidden_size)
    known_inputs: dict[str, Shape] = {"hidden": hidden, "attention_bias": (1, 1, "length")}
    task = get_task(manifest.task)
    if task.uses_answer_mask:
        known_inputs["answer_bias"] = (1, "length")
    known_outputs: dict[str, Shape] = {
        "hidden": hidden,
        **task.output_shapes(len(manifest.labels)),
        "uncertainty": (1,),
    }
    last = manifest.segments - 1
    embed = _runnable_program(file, manifest, "embed")
    _check_inputs(file, embed, {"input_ids": (1, "length")}, "input_ids")
    _check_outputs(file, embed, {"hidden": hidden}, ("hidden",))
    for index in range(manifest.segments):
        uncertainty = ("uncertainty",) if task.measures_uncertainty else ()
        next_input = () if index == last else ("hidden",)
        segment = _runnable_program(file, manifest, f"segment_{index}")
        _check_inputs(file, segment, known_inputs, "hidden")
        _check_outputs(file, segment, known_outputs, (*task.exit_outputs, *uncertainty, *next_input))


def _runnable_program(file: Path, manifest: Manifest, name: str) -> Program:
    """Returns the program of that name that this runner runs. UserError unless it takes any length and has a file."""
    try:
        program = manifest.program(name, BACKEND)
    except KeyError:
        raise UserError(
            f"has no {BACKEND} program {name!r}; export the bundle again", file=file, field="programs"
        ) from None
    if program.lengths is not None:
        raise UserError(
            f"has fixed lengths {program.lengths}; this runner takes {BACKEND} programs of any length",
            file=file,
            field=f"programs.{name}.lengths",
        )
    if program.file not in {entry.path for entry in manifest.files}:
        raise UserError(
            f"{program.file!r} is not in the manifest's list of files; export the bundle again",
            file=file,
            field=f"programs.{name}.file",
        )
    return program


def _check_inputs(file: Path, program: Program, known: Mapping[str, Shape], required: str) -> None:
    """Checks every input: an input that the runner does not know cannot be given."""
    for tensor in program.inputs:
        if tensor.name not in known:
            raise UserError(
                f"this runner knows only {', '.join(known)}; update pocketbert, or export again",
                file=file,
                field=f"programs.{program.name}.inputs.{tensor.name}",
            )
    _check_tensors(file, program, "inputs", program.inputs, known, (required,))


def _check_outputs(file: Path, program: Program, known: Mapping[str, Shape], required: Sequence[str]) -> None:
    """Checks the outputs that the runner knows. It skips others, which later versions may add."""
    tensors = [tensor for tensor in program.outputs if tensor.name in known]
    _check_tensors(file, program, "outputs", tensors, known, required)


def _check_tensors(
    file: Path,
    program: Program,
    side: str,
    tensors: Sequence[TensorSpec],
    known: Mapping[str, Shape],
    required: Sequence[str],
) -> None:
    """Checks that the required tensors are there, and that all have the known shapes and types."""
    for tensor in tensors:
        field = f"programs.{program.name}.{side}.{tensor.name}"
        if tuple(tensor.shape) != tuple(known[tensor.name]):
            raise UserError(
                f"shape {tensor.shape} where {list(known[tensor.name])} is known; update pocketbert, or export again",
                file=file,
                field=field,
            )
        dtypes = _DTYPES.get(tensor.name, ("float32",))
        if tensor.dtype not in dtypes:
            raise UserError(
                f"type {tensor.dtype} where {' or '.join(dtypes)} is known; update pocketbert, or export again",
                file=file,
                field=field,
            )
    missing = set(required) - {tensor.name for tensor in tensors}
    if missing:
        raise UserError(
            f"has no {', '.join(sorted(missing))}; export the bundle again",
            file=file,
            field=f"programs.{program.name}.{side}",
        )
