"""A bundle opened for reading: its manifest and its tokenizer, checked so that a runner can rely on both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundle.exit_rule import FULL_DEPTH
from pipeline.bundle.manifest import MANIFEST_FILE, Manifest, Program, Tensor, read_manifest
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.support.errors import UserError
from pipeline.tasks import get_task

BACKEND = "executorch"
DEFAULT_SPEED = "exact"
FULL_SPEED = "full"  # every segment, whatever the uncertainty; the name that the conformance vectors use, too

_DTYPES = {"input_ids": ("int64", "int32")}  # everything else is float32


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest, files and vocabulary fit each other."""

    path: Path
    manifest: Manifest
    tokenizer: WordPieceTokenizer

    @classmethod
    def open(cls, path: str | Path, check_files: bool = True) -> Bundle:
        """Reads and checks a bundle; loads no program.

        Args:
            path: the bundle's folder.
            check_files: compare every file with the manifest's size and SHA-256. Without it a missing program is found on loading.

        Raises:
            UserError: naming file and field, where the folder is no bundle, its format is unknown, a file is missing or altered, the
                vocabulary does not fit, or a program has an input, an output, a type or a shape that this runner does not know.
        """
        path = Path(path)
        manifest = read_manifest(path, check_files)
        vocab = path / manifest.tokenizer.vocab_file
        tokenizer = WordPieceTokenizer.from_vocab(vocab, manifest.tokenizer.lowercase)
        _check_tokenizer(path, manifest, tokenizer)
        _check_options(path / MANIFEST_FILE, manifest)
        _check_programs(path / MANIFEST_FILE, manifest)
        return cls(path, manifest, tokenizer)


def speed_thresholds(manifest: Manifest, speed: str | float) -> list[float]:
    """The uncertainty threshold of every exit.

    Args:
        speed: the name of a calibrated speed, "full" for every segment, or a number that is the threshold of every exit: an input leaves after the first
            segment whose uncertainty is below it. 0 is full depth, anything above 1 the first exit (FastBERT's "speed").

    Raises:
        UserError: the name is unknown, or the number negative or not finite.
    """
    if isinstance(speed, str) and speed in manifest.speeds:
        return list(manifest.speeds[speed].thresholds)
    if speed == FULL_SPEED:
        return [FULL_DEPTH] * manifest.segments
    names = ", ".join((*manifest.speeds, FULL_SPEED))
    way_out = f"this bundle has {names}; or give an uncertainty threshold, 0 (full depth) to 1"
    try:
        threshold = float(speed)
    except ValueError:
        raise UserError(f"{speed!r} is not known; {way_out}", field="speed") from None
    if not math.isfinite(threshold) or threshold < 0:
        raise UserError(f"{speed} is no threshold; {way_out}", field="speed")
    return [threshold] * manifest.segments


def default_speed(manifest: Manifest) -> str:
    """The speed where none is asked for: "exact" where it was calibrated, else full depth."""
    return DEFAULT_SPEED if DEFAULT_SPEED in manifest.speeds else FULL_SPEED


def _check_tokenizer(bundle: Path, manifest: Manifest, tokenizer: WordPieceTokenizer) -> None:
    said, vocab = manifest.tokenizer, bundle / manifest.tokenizer.vocab_file
    for field, size in (("tokenizer.vocab_size", said.vocab_size), ("model.vocab_size", manifest.model.vocab_size)):
        if tokenizer.vocab_size != size:
            raise UserError(
                f"holds {tokenizer.vocab_size} tokens, the manifest's {field} says {size}; "
                "the vocabulary belongs to another bundle: export it again",
                file=vocab,
            )
    for name in ("pad_id", "unk_id", "cls_id", "sep_id"):
        if getattr(tokenizer, name) != getattr(said, name):
            raise UserError(
                f"puts it at {getattr(tokenizer, name)}, the manifest at {getattr(said, name)}; "
                "the vocabulary belongs to another bundle: export it again",
                file=vocab,
                field=f"tokenizer.{name}",
            )


def _check_options(file: Path, manifest: Manifest) -> None:
    """What the manifest's types cannot say: that its parts agree with each other."""
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
            f"{len(manifest.exits.temperatures)} temperatures for {manifest.segments} segments; export the bundle again",
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
    """That `embed` and all segments are there for ExecuTorch, with inputs and outputs that this runner knows how to give and take."""
    hidden = [1, "length", manifest.model.hidden_size]
    known_inputs = {"hidden": hidden, "attention_bias": [1, 1, "length"]}
    task = get_task(manifest.task)
    if task.uses_answer_mask:
        known_inputs["answer_bias"] = [1, "length"]
    known_outputs = {
        "hidden": hidden,
        **task.output_shapes(len(manifest.labels)),
        "uncertainty": [1],
    }
    last = manifest.segments - 1
    _check_program(
        file, manifest, "embed", {"input_ids": [1, "length"]}, {"hidden": hidden}, "input_ids", required=("hidden",)
    )
    for segment in range(manifest.segments):
        uncertainty = ("uncertainty",) if task.measures_uncertainty else ()
        required = (*task.exit_outputs, *uncertainty, *(() if segment == last else ("hidden",)))
        _check_program(file, manifest, f"segment_{segment}", known_inputs, known_outputs, "hidden", required)


def _check_program(
    file: Path,
    manifest: Manifest,
    name: str,
    known_inputs: dict[str, list],
    known_outputs: dict[str, list],
    required_input: str,
    required: tuple[str, ...],
) -> None:
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
    _check_tensors(file, program, "inputs", program.inputs, known_inputs)
    _check_tensors(file, program, "outputs", program.outputs, known_outputs)
    for side, tensors, needed in (
        ("inputs", program.inputs, (required_input,)),
        ("outputs", program.outputs, required),
    ):
        missing = set(needed) - {tensor.name for tensor in tensors}
        if missing:
            raise UserError(
                f"has no {', '.join(sorted(missing))}; export the bundle again",
                file=file,
                field=f"programs.{name}.{side}",
            )


def _check_tensors(file: Path, program: Program, side: str, tensors: list[Tensor], known: dict[str, list]) -> None:
    for tensor in tensors:
        field = f"programs.{program.name}.{side}.{tensor.name}"
        if tensor.name not in known:
            raise UserError(
                f"this runner knows only {', '.join(known)}; update pocketbert, or export again", file=file, field=field
            )
        if tensor.shape != known[tensor.name]:
            raise UserError(
                f"shape {tensor.shape} where {known[tensor.name]} is known; update pocketbert, or export again",
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
