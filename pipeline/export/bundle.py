"""Writes a bundle: programs, tokenizer, conformance vectors, and the manifest that describes them."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from pipeline import __version__
from pipeline.bundle.conformance import CONFORMANCE_FILE, ProgramVector
from pipeline.bundle.fields import COMMON_MINOR, FORMAT_MINOR
from pipeline.bundle.manifest import (
    MANIFEST_FILE,
    ExitOptions,
    Manifest,
    ModelShape,
    Program,
    QAOptions,
    Speed,
    Tokenizer,
    describe_files,
    json_schema,
)
from pipeline.bundle.requirements import requirements_of
from pipeline.data.examples import Example
from pipeline.data.labels import LabelRange
from pipeline.data.tokenizer import WordPieceTokenizer
from pipeline.export.executorch import export_executorch
from pipeline.export.fingerprints import make_fingerprints
from pipeline.export.vectors import make_vectors
from pipeline.model.encoder import parameter_count
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs
from pipeline.recipe import Recipe
from pipeline.schemes import WORD_TABLE_MATRIX
from pipeline.support.errors import UserError
from pipeline.support.packages import installed_version
from pipeline.support.progress import OnStep, silent
from pipeline.support.workspace import is_full_disk, write_text
from pipeline.tasks import get_task

VOCAB_FILE = "vocab.txt"
EXECUTORCH_FILE = "model.pte"
SCHEMA_FILE = "manifest.schema.json"
TOOLS = ("torch", "executorch", "torchao", "coremltools", "transformers", "tokenizers")


@dataclass(frozen=True)
class BundleSource:
    """The models that the programs of a bundle are made from.

    Attributes:
        model: the trained student in float32. The programs for ExecuTorch's Core ML delegate are made from it.
        quantized: its programs, quantized as the recipe says. ExecuTorch's programs and the conformance vectors are
            made from these.
        coreml_model: the model that the Core ML packages store, where it is not `model`: the student whose int4
            matrices are rounded already (`quantize.rounding`).
        matrix_schemes: the scheme of each matrix in `quantized`, where the recipe's scheme is mixed.
        input_gains: the gains of the input channels, where Core ML programs have int8 inputs
            (`quantize.int8_inputs.input_gains`).
    """

    model: ExitModel
    quantized: Programs
    coreml_model: ExitModel | None = None
    matrix_schemes: Mapping[str, str] = field(default_factory=dict)
    input_gains: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Labels:
    """What the labels of the task are.

    Attributes:
        values: what the data files write for each class, in the order of the logits; empty for other tasks.
        range: the range of the labels in the training data, for regression.
    """

    values: Sequence[str] = ()
    range: LabelRange | None = None


def write_bundle(
    folder: Path,
    recipe: Recipe,
    source: BundleSource,
    tokenizer: WordPieceTokenizer,
    labels: Labels,
    *,
    speeds: Mapping[str, Speed],
    conformance_examples: Sequence[Example],
    provenance: Mapping[str, str],
    on_step: OnStep = silent,
) -> Manifest:
    """Writes all files of a bundle, the manifest last. The same arguments give the same bytes.

    Args:
        folder: new or empty. After a failure it holds a part of a bundle without a manifest, which the caller removes.
        recipe: says which programs to write, and how long their inputs may be.
        source: the models to make programs from.
        tokenizer: the tokenizer that the model was trained with. It goes into the bundle.
        labels: the task's labels; `Labels()` for question answering.
        speeds: the calibrated speeds by name.
        conformance_examples: about 16 inputs for the conformance vectors, see `make_vectors`.
        provenance: where weights and data came from. The tools' versions are added.
        on_step: is told of the progress.

    Returns:
        The manifest as it was written.

    Raises:
        UserError: label names or vocabulary do not fit the model, the model takes shorter inputs than the recipe asks
            for, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / VOCAB_FILE).write_bytes(tokenizer.vocab)
        manifest = describe(recipe, source, tokenizer, labels, speeds, provenance)
        vectors = make_vectors(
            source.quantized,
            Programs.of(source.model),
            conformance_examples,
            tokenizer,
            context=manifest.answer_context,
            thresholds={name: speed.thresholds for name, speed in speeds.items()},
            on_step=on_step,
        )
        write_text(folder / SCHEMA_FILE, json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
        programs = export_programs(folder, recipe, source, on_step)
        if fingerprints := program_fingerprints(recipe, source, programs):
            vectors = vectors.model_copy(update={"programs": fingerprints})
        write_text(folder / CONFORMANCE_FILE, vectors.model_dump_json(exclude_none=True) + "\n")
        backends = {program.backend for program in programs}
        requires = requirements_of(backends, version("executorch"), recipe.export.coreml_target)
        manifest = manifest.model_copy(
            update={"programs": programs, "requires": requires, "files": describe_files(folder)}
        )
        write_text(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
    except Exception as error:
        if is_full_disk(error):
            raise UserError("the disk is full; free some space and run the same command again", file=folder) from None
        raise
    return manifest


def export_programs(folder: Path, recipe: Recipe, source: BundleSource, on_step: OnStep) -> list[Program]:
    """Writes the programs for ExecuTorch, and where the recipe has them, those for Core ML and for its delegate."""
    length = min(recipe.export.max_length, source.model.config.max_positions)
    programs = export_executorch(source.quantized, folder / EXECUTORCH_FILE, length, recipe.quantize.scheme, on_step)
    if recipe.export.coreml:
        from pipeline.export.coreml import export_coreml  # coremltools takes seconds to import

        model = source.coreml_model or source.model
        programs += export_coreml(model, folder, recipe, on_step, source.matrix_schemes, source.input_gains)
    if recipe.export.executorch_coreml:
        from pipeline.export.executorch_coreml import export_executorch_coreml

        programs += export_executorch_coreml(source.model, folder, recipe, on_step)
    return programs


def program_fingerprints(recipe: Recipe, source: BundleSource, programs: Sequence[Program]) -> list[ProgramVector]:
    """Returns the fingerprints of all programs that Core ML computes, the packages first."""
    fingerprints: list[ProgramVector] = []
    models = {"coreml": source.coreml_model or source.model, "executorch-coreml": source.model}
    for backend, model in models.items():
        chosen = [program for program in programs if program.backend == backend]
        fingerprints += make_fingerprints(
            model, chosen, recipe.export.coreml_layout, source.matrix_schemes, source.input_gains
        )
    return fingerprints


def describe(
    recipe: Recipe,
    source: BundleSource,
    tokenizer: WordPieceTokenizer,
    labels: Labels,
    speeds: Mapping[str, Speed],
    provenance: Mapping[str, str],
) -> Manifest:
    """Returns the manifest of a bundle without its programs and files.

    Raises:
        UserError: label names or vocabulary do not fit the model.
    """
    model, qa = source.model, recipe.qa
    task = get_task(recipe.task)
    names = list(recipe.data.label_names or labels.values) if task.has_classes else []
    values = list(labels.values) if task.has_classes else []
    if task.has_classes:
        for key, given in (("data.label_names", names), ("data.label", values)):
            if len(given) != model.labels:
                raise UserError(f"{len(given)} labels for a model with {model.labels} classes", field=key)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(
            f"the vocabulary has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}; "
            "give the model's own",
            field=VOCAB_FILE,
        )
    entry = describe_tokenizer(tokenizer)
    new_fields = [f"tokenizer.{name}" for name in entry.fields_of_minor_2()]
    return Manifest(
        # The newest addition that this bundle uses, so that a bundle without one stays as it was.
        format_minor=FORMAT_MINOR if new_fields else COMMON_MINOR,
        must_understand=new_fields,
        name=recipe.name,
        task=recipe.task,
        labels=names,
        label_values=values,
        max_length=longest_input(recipe, model.config.max_positions),
        model=describe_model(model),
        tokenizer=entry,
        label_range=labels.range,
        qa=None
        if not task.cuts_into_windows
        else QAOptions(
            window=qa.window,
            stride=qa.stride,
            max_question=qa.max_question,
            max_answer=qa.max_answer,
            allow_no_answer=qa.allow_no_answer,
        ),
        scheme=recipe.quantize.scheme,
        embeddings_scheme=source.matrix_schemes.get(WORD_TABLE_MATRIX, recipe.quantize.embeddings),
        matrix_schemes=dict(source.matrix_schemes),
        programs=[],
        exits=ExitOptions(
            uncertainty=model.uncertainty,
            temperatures=list(model.temperatures) if any(value != 1.0 for value in model.temperatures) else [],
        ),
        speeds=dict(speeds),
        files=[],
        provenance={**provenance, **tool_versions()},
    )


def describe_model(model: ExitModel) -> ModelShape:
    """Returns the manifest's entry for the shape of the model."""
    config = model.config
    return ModelShape(
        layers=config.layers,
        hidden_size=config.hidden_size,
        heads=config.heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        token_types=config.token_types,
        parameters=parameter_count(model),
        exit_layers=list(model.exit_layers),
        head=model.head_kind,
    )


def describe_tokenizer(tokenizer: WordPieceTokenizer) -> Tokenizer:
    """Returns the manifest's entry for the tokenizer."""
    return Tokenizer(
        vocab_file=VOCAB_FILE,
        vocab_size=tokenizer.vocab_size,
        **tokenizer.options(),
        pad_id=tokenizer.pad_id,
        unk_id=tokenizer.unk_id,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
    )


def longest_input(recipe: Recipe, positions: int) -> int:
    """Returns the number of tokens to which inputs are cut.

    For classification and regression it is the length of training and calibration, since the thresholds say nothing
    about longer texts. For question answering the windows are cut to the length of training, so the limit is what the
    programs take.

    Args:
        recipe: has the lengths.
        positions: the number of tokens that the model takes.
    """
    longest = recipe.export.max_length if get_task(recipe.task).cuts_into_windows else recipe.data.max_length
    return min(longest, positions)


def tool_versions() -> dict[str, str]:
    """Returns the versions of this project, of Python, and of the libraries that leave traces in the programs."""
    versions = {"pocketbert": __version__, "python": platform.python_version()}
    for tool in TOOLS:
        if found := installed_version(tool):  # coremltools, for example, is not made for every platform
            versions[tool] = found
    return versions
