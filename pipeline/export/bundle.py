"""Writes a bundle: programs, tokenizer, conformance vectors, and the manifest that describes them."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import Tensor

from pipeline import __version__
from pipeline.bundle.conformance import CONFORMANCE_FILE
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
from pipeline.support.errors import UserError
from pipeline.support.progress import OnStep, silent
from pipeline.support.workspace import is_full_disk, write_text
from pipeline.tasks import get_task
from quantize.schemes import EMBEDDINGS_MATRIX

VOCAB_FILE = "vocab.txt"
EXECUTORCH_FILE = "model.pte"
SCHEMA_FILE = "manifest.schema.json"
TOOLS = ("torch", "executorch", "torchao", "coremltools", "transformers", "tokenizers")


def write_bundle(
    folder: Path,
    *,
    model: ExitModel,
    quantized: Programs,
    recipe: Recipe,
    tokenizer_vocab: Path,
    lowercase: bool,
    label_values: Sequence[str],
    speeds: Mapping[str, Speed],
    conformance_examples: Sequence[Example],
    provenance: Mapping[str, str],
    label_range: LabelRange | None = None,
    matrix_schemes: Mapping[str, str] | None = None,
    input_gains: Mapping[str, Tensor] | None = None,
    coreml_model: ExitModel | None = None,
    on_step: OnStep = silent,
) -> Manifest:
    """Writes all files of a bundle into `folder`, the manifest last; the same arguments give the same bytes.

    Args:
        folder: new or empty; on failure it holds a part of a bundle without a manifest, for the caller to throw away.
        model: the trained student in float32; Core ML's programs are made from it, unless there is a `coreml_model`.
        quantized: `apply_scheme` of its programs by the recipe; ExecuTorch's programs and the conformance vectors are made from it.
        tokenizer_vocab: the `vocab.txt` that the model was trained with.
        label_values: what the data files write for each class, in the order of the logits; empty for regression and question answering.
        speeds: the calibrated speeds by name.
        conformance_examples: about 16, see `make_vectors`.
        provenance: where weights and data came from; the tools' versions are added.
        label_range: for regression, that of the labels in train.
        matrix_schemes: where the recipe's scheme is mixed, that of each matrix in `quantized`.
        input_gains: where Core ML's programs have int8 inputs, their channels' gains (`quantize.int8_inputs.input_gains`).
        coreml_model: where Core ML's packages have int4 matrices, the student with those in whole steps (`quantize.rounding`).
        on_step: told as the work goes on.

    Raises:
        UserError: label names or the vocabulary do not fit the model, the model is too short for the recipe's lengths, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tokenizer_vocab, folder / VOCAB_FILE)
        tokenizer = WordPieceTokenizer.from_vocab(folder / VOCAB_FILE, lowercase)
        manifest = describe(model, recipe, tokenizer, label_values, speeds, provenance, label_range, matrix_schemes)
        vectors = make_vectors(
            quantized,
            Programs.of(model),
            conformance_examples,
            tokenizer,
            context=manifest.answer_context,
            thresholds={name: speed.thresholds for name, speed in speeds.items()},
            on_step=on_step,
        )
        write_text(folder / SCHEMA_FILE, json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
        coreml_model = coreml_model or model
        programs = export_programs(folder, model, quantized, recipe, on_step, coreml_model, matrix_schemes, input_gains)
        fingerprints = []
        for backend, source in (("coreml", coreml_model), ("executorch-coreml", model)):
            of_backend = [program for program in programs if program.backend == backend]
            fingerprints += make_fingerprints(
                source, of_backend, recipe.export.coreml_layout, matrix_schemes, input_gains
            )
        if fingerprints:
            vectors = vectors.model_copy(update={"programs": fingerprints})
        write_text(folder / CONFORMANCE_FILE, vectors.model_dump_json(exclude_none=True) + "\n")
        manifest = manifest.model_copy(update={"programs": programs, "files": describe_files(folder)})
        write_text(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
    except Exception as error:
        if is_full_disk(error):
            raise UserError("the disk is full; free some space and run the same command again", file=folder) from None
        raise
    return manifest


def export_programs(
    folder: Path,
    model: ExitModel,
    quantized: Programs,
    recipe: Recipe,
    on_step: OnStep,
    coreml_model: ExitModel,
    matrix_schemes: Mapping[str, str] | None,
    input_gains: Mapping[str, Tensor] | None,
) -> list[Program]:
    """Writes ExecuTorch's programs, and Core ML's and those for ExecuTorch's Core ML delegate where the recipe asks for them."""
    length = min(recipe.export.max_length, model.config.max_positions)
    programs = export_executorch(quantized, folder / EXECUTORCH_FILE, length, recipe.quantize.scheme, on_step)
    if recipe.export.coreml:
        from pipeline.export.coreml import export_coreml  # coremltools takes seconds to import

        programs += export_coreml(coreml_model, folder, recipe, on_step, matrix_schemes, input_gains)
    if recipe.export.executorch_coreml:
        from pipeline.export.executorch_coreml import export_executorch_coreml

        programs += export_executorch_coreml(model, folder, recipe, on_step)
    return programs


def describe(
    model: ExitModel,
    recipe: Recipe,
    tokenizer: WordPieceTokenizer,
    label_values: Sequence[str],
    speeds: Mapping[str, Speed],
    provenance: Mapping[str, str],
    label_range: LabelRange | None = None,
    matrix_schemes: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest, its programs and files still to be filled in. Raises UserError where the parts do not fit each other."""
    task = get_task(recipe.task)
    labels = list(recipe.data.label_names or label_values) if task.has_classes else []
    values = list(label_values) if task.has_classes else []
    if task.has_classes:
        for field, names in (("data.label_names", labels), ("data.label", values)):
            if len(names) != model.labels:
                raise UserError(f"{len(names)} labels for a model with {model.labels} classes", field=field)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(
            f"the vocabulary has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}; give the model's own",
            field=VOCAB_FILE,
        )
    config, qa, matrix_schemes = model.config, recipe.qa, matrix_schemes or {}
    return Manifest(
        name=recipe.name,
        task=recipe.task,
        labels=labels,
        label_values=values,
        max_length=longest_input(recipe, config.max_positions),
        model=ModelShape(
            layers=config.layers,
            hidden_size=config.hidden_size,
            heads=config.heads,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            parameters=parameter_count(model),
            exit_layers=list(model.exit_layers),
            head=model.head_kind,
        ),
        tokenizer=Tokenizer(
            vocab_file=VOCAB_FILE,
            vocab_size=tokenizer.vocab_size,
            lowercase=tokenizer.lowercase,
            pad_id=tokenizer.pad_id,
            unk_id=tokenizer.unk_id,
            cls_id=tokenizer.cls_id,
            sep_id=tokenizer.sep_id,
        ),
        label_range=label_range,
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
        embeddings_scheme=matrix_schemes.get(EMBEDDINGS_MATRIX, recipe.quantize.embeddings),
        matrix_schemes=dict(matrix_schemes),
        programs=[],
        exits=ExitOptions(
            uncertainty=model.uncertainty,
            temperatures=list(model.temperatures) if any(each != 1.0 for each in model.temperatures) else [],
        ),
        speeds=dict(speeds),
        files=[],
        provenance={**provenance, **tool_versions()},
    )


def longest_input(recipe: Recipe, positions: int) -> int:
    """Where inputs are cut, in tokens.

    A classifier or a regression cuts where it did in training and calibration: a longer text would be answered with what no
    threshold was chosen for.
    A question's window does that for question answering, so there it is what the programs take.
    """
    task = get_task(recipe.task)
    longest = recipe.export.max_length if task.cuts_into_windows else recipe.data.max_length
    return min(longest, positions)


def tool_versions() -> dict[str, str]:
    """What wrote the bundle: this project, Python, and the libraries whose versions show in the programs."""
    versions = {"pocketbert": __version__, "python": platform.python_version()}
    for tool in TOOLS:
        try:
            versions[tool] = version(tool)
        except PackageNotFoundError:  # coremltools, say, where none is made for the platform
            continue
    return versions
