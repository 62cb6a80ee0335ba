"""Counts the bytes of a bundle by what they hold, and compares them with float32, BERT-base and the paper's app."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.bundle.manifest import MANIFEST_FILE, Manifest, ModelShape, read_manifest
from pipeline.model.encoder import Encoder, EncoderConfig, parameter_count
from pipeline.model.exit_model import ExitModel
from pipeline.model.segments import Programs, SegmentProgram
from pipeline.names import Backend, Task
from pipeline.schemes import (
    SCHEMES,
    UnknownSchemeError,
    coreml_counterpart,
    float16_bytes,
    linear_layers,
    word_table,
)
from pipeline.support.document import Document
from pipeline.support.errors import UserError
from quantize.coreml_schemes import stored_bytes
from quantize.growth import Growth
from quantize.schemes import named_linears

# The size of the DistilBERT paper's app (Sanh et al. 2019, section 4.1, on-device computation).
TARGET_BYTES = 207_000_000
BERT_BASE = EncoderConfig(layers=12, token_types=2)

Part = Literal["embeddings", "layers", "heads", "vocabulary", "overhead", "other"]
PARTS: tuple[Part, ...] = ("embeddings", "layers", "heads", "vocabulary", "overhead", "other")


class FileSize(Document):
    """A file of the bundle; `path` is relative to the bundle's folder."""

    path: str
    bytes: int


class Parts(Document):
    """Bytes by what they hold.

    `embeddings`, `layers` and `heads` are computed from the model's shape and its schemes. `overhead` is the rest of
    the programs' files: graphs, alignment, the format's own structure. A negative overhead means that weights take
    fewer bytes than computed. `other` is the manifest, the conformance vectors and the pages for people.
    """

    embeddings: int = 0
    layers: int = 0
    heads: int = 0
    vocabulary: int = 0
    overhead: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, part) for part in PARTS)

    def __add__(self, other: Parts) -> Parts:
        return Parts(**{part: getattr(self, part) + getattr(other, part) for part in PARTS})


class TargetSize(Document):
    """The bytes that an app for one target ships: the bundle without the other targets' programs."""

    backend: Backend
    scheme: str
    bytes: int
    program_bytes: int
    parts: Parts
    ratio: float = Field(description="how many times larger BERT-base is in float32")


class SizeReport(Document):
    """The output of `pocketbert size --json`. `parts` counts all targets together and adds up to `total_bytes`."""

    name: str
    files: list[FileSize]
    total_bytes: int
    parts: Parts
    targets: list[TargetSize]
    parameters: int
    fp32_bytes: int = Field(description="size of the same model's parameters in float32")
    fp32_parts: Parts
    bert_base_bytes: int = Field(description="size of BERT-base's parameters in float32, with the pooler")
    bert_base_parts: Parts
    target_bytes: int = TARGET_BYTES
    ratio: float = Field(description="bert_base_bytes / total_bytes")
    growth: list[Growth] = Field([], description="what an app grows by, for each platform and runtime")

    def rows(self) -> list[SizeRow]:
        """Returns a table of every target's parts and of what they are compared with."""
        rows: list[SizeRow] = []
        for target in self.targets:
            for part in PARTS:
                if size := getattr(target.parts, part):
                    rows.append(
                        SizeRow(target.backend, part, target.scheme, size, getattr(self.fp32_parts, part) or None)
                    )
            rows.append(SizeRow(target.backend, "total", target.scheme, target.bytes, self.fp32_bytes))
        rows.append(SizeRow("bundle", "total", "", self.total_bytes, None))
        rows.append(SizeRow("same model", "total", "fp32", self.fp32_bytes, self.fp32_bytes))
        rows.append(SizeRow("BERT-base", "total", "fp32", self.bert_base_bytes, self.bert_base_bytes))
        rows.append(SizeRow("the paper's app", "total", "", self.target_bytes, None))
        return rows


@dataclass(frozen=True)
class SizeRow:
    """One line of the table; `fp32_bytes` is the size of the same thing in float32, None where it has none."""

    target: str
    part: str
    scheme: str
    bytes: int
    fp32_bytes: int | None


def size_of(bundle: str | Path) -> SizeReport:
    """Returns the bytes of a bundle by what they hold.

    Raises:
        UserError: the folder is not a whole bundle, no model has its manifest's shape, or this version does not know
            a scheme.
    """
    bundle = Path(bundle)
    manifest = read_manifest(bundle)
    files = [FileSize(path=MANIFEST_FILE, bytes=(bundle / MANIFEST_FILE).stat().st_size)]
    files += [FileSize(path=file.path, bytes=file.bytes) for file in manifest.files]
    model = model_of(manifest, bundle / MANIFEST_FILE)
    fp32 = fp32_parts(model)
    bert_base, total = bert_base_parts(), sum(file.bytes for file in files)

    backends = {program.backend for program in manifest.programs}
    owner = {file.path: backend_of(file.path, manifest) for file in files}
    shared = Parts(
        vocabulary=sum(file.bytes for file in files if file.path == manifest.tokenizer.vocab_file),
        other=sum(
            file.bytes for file in files if owner[file.path] is None and file.path != manifest.tokenizer.vocab_file
        ),
    )
    targets, parts = [], shared
    for backend in get_args(Backend):
        if backend not in backends:
            continue
        size = sum(file.bytes for file in files if owner[file.path] == backend)
        try:
            programs = stored_parts(model, manifest, backend)
        except UnknownSchemeError as error:
            raise UserError(
                f"{error}; export the bundle again", file=bundle / MANIFEST_FILE, field=f"{backend} programs"
            ) from None
        programs += Parts(overhead=size - programs.total)
        parts += programs
        shipped = programs + shared
        targets.append(
            TargetSize(
                backend=backend,
                scheme=scheme_of(manifest, backend),
                bytes=shipped.total,
                program_bytes=size,
                parts=shipped,
                ratio=bert_base.total / shipped.total,
            )
        )
    return SizeReport(
        name=manifest.name,
        files=sorted(files, key=lambda file: file.path),
        total_bytes=total,
        parts=parts,
        targets=targets,
        parameters=manifest.model.parameters,
        fp32_bytes=fp32.total,
        fp32_parts=fp32,
        bert_base_bytes=bert_base.total,
        bert_base_parts=bert_base,
        ratio=bert_base.total / total,
    )


def bundle_bytes(bundle: str | Path) -> int:
    """Returns the size of all files of a bundle, the manifest among them, as the manifest lists them."""
    files = read_manifest(bundle, check_files=False).files
    return (Path(bundle) / MANIFEST_FILE).stat().st_size + sum(file.bytes for file in files)


def backend_of(path: str, manifest: Manifest) -> Backend | None:
    """Returns the target whose programs a file belongs to; None for a file that all targets need."""
    for program in manifest.programs:
        if path == program.file or path.startswith(program.file + "/"):
            return program.backend
    return None


def scheme_of(manifest: Manifest, backend: str) -> str:
    """Returns the scheme of a target's programs, and that of the embeddings where it is another one."""
    segments = manifest.program("segment_0", backend).precision
    if backend == "executorch":
        embed = manifest.embeddings_scheme
    else:
        embed = manifest.program("embed", backend).precision
    return segments if segments == embed else f"{segments}, embeddings {embed}"


# The model, without its weights.


def model_of(manifest: Manifest, file: Path) -> ExitModel:
    """A model of the manifest's shape on the meta device: shapes without memory.

    Raises:
        UserError: no model has this shape, or a model of this shape has another number of parameters.
    """
    shape = manifest.model
    labels = manifest.head_outputs
    try:
        model = build_meta(manifest.task, shape, labels, shape.max_positions or 1)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"is no shape of a model ({error}); export the bundle again", file=file, field="model"
        ) from None
    missing = shape.parameters - parameter_count(model)
    if shape.max_positions is None and missing > 0 and missing % shape.hidden_size == 0:
        # A bundle of minor version 0 does not say how many positions there are, but all else is known.
        return build_meta(manifest.task, shape, labels, 1 + missing // shape.hidden_size)
    if missing:
        raise UserError(
            f"{shape.parameters} parameters do not go with the shape beside it; export the bundle again",
            file=file,
            field="model.parameters",
        )
    return model


def build_meta(task: Task, shape: ModelShape, labels: int, positions: int) -> ExitModel:
    config = EncoderConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        max_positions=positions,
        token_types=shape.token_types or 0,
    )
    with torch.device("meta"):
        return ExitModel(task, config, labels, shape.head, shape.exit_layers)


def fp32_parts(model: ExitModel) -> Parts:
    """Returns the bytes of a model's parameters in float32."""
    return Parts(
        embeddings=4 * parameter_count(model.encoder.embeddings),
        layers=4 * parameter_count(model.encoder.layers),
        heads=4 * parameter_count(model.heads),
    )


@lru_cache(maxsize=1)
def bert_base_parts() -> Parts:
    """Returns the bytes of BERT-base's 109,482,240 parameters in float32; its pooler counts as the head."""
    with torch.device("meta"):
        encoder = Encoder(BERT_BASE)
        pooler = nn.Linear(BERT_BASE.hidden_size, BERT_BASE.hidden_size)
    return Parts(
        embeddings=4 * parameter_count(encoder.embeddings),
        layers=4 * parameter_count(encoder.layers),
        heads=4 * parameter_count(pooler),
    )


# The weights of a target.


def stored_parts(model: ExitModel, manifest: Manifest, backend: Backend) -> Parts:
    """Returns the bytes of a target's weights. Raises UnknownSchemeError for a scheme not in the catalogue."""
    if backend != "executorch":
        return coreml_parts(model, manifest, backend)
    with torch.device("meta"):
        programs = Programs.of(model)
    return executorch_parts(programs, manifest.matrix_schemes or manifest.scheme, manifest.embeddings_scheme)


def executorch_parts(programs: Programs, scheme: str | Mapping[str, str], embeddings: str) -> Parts:
    """Returns the bytes of the weights in ExecuTorch programs that `apply_scheme` quantizes with the same arguments.

    Args:
        programs: in float32; the meta device will do.
    """
    linears = named_linears(programs)
    schemes = dict.fromkeys(linears, scheme) if isinstance(scheme, str) else scheme
    stored = {
        id(linear.weight): linear_layers(schemes[name]).stored_bytes
        for name, linear in linears.items()
        if name in schemes
    }
    stored[id(programs.embed.embeddings.word.weight)] = word_table(embeddings).stored_bytes
    if word_table(embeddings).float16_positions:
        stored[id(programs.embed.embeddings.position.weight)] = float16_bytes

    def bytes_of(modules: Iterable[nn.Module]) -> int:
        weights = [weight for module in modules for weight in module.parameters()]
        return sum(
            stored[id(weight)](*weight.shape) if id(weight) in stored else 4 * weight.numel() for weight in weights
        )

    # a ModuleList forgets the type of its modules
    segments = [cast(SegmentProgram, segment) for segment in programs.segments]
    return Parts(
        embeddings=bytes_of([programs.embed]),
        layers=bytes_of(segment.layers for segment in segments),
        heads=bytes_of(segment.head for segment in segments),
    )


def coreml_parts(model: ExitModel, manifest: Manifest, backend: Backend = "coreml") -> Parts:
    """Returns the bytes of the weights in a bundle's Core ML programs (`quantize.coreml_schemes`).

    Buckets in one package, or in one `.pte`, share their weights. Only the position embeddings are stored once per
    bucket, as many as its length. Buckets with packages or files of their own have all weights each.
    """

    def stored(weight: Tensor, precision: str, rows: int, matrix: str = "") -> int:
        if precision in SCHEMES and SCHEMES[precision].by_matrix and matrix in manifest.matrix_schemes:
            precision = coreml_counterpart(manifest.matrix_schemes[matrix])
        return stored_bytes((rows, *weight.shape[1:]), precision)

    def packages(name: str) -> int:
        return len(
            {program.file for program in manifest.programs if program.backend == backend and program.name == name}
        )

    def stored_whole(module: nn.Module, name: str, prefix: str) -> int:
        """Counts a module in all packages of a program; `prefix` begins its names in `named_linears`."""
        precision = manifest.program(name, backend).precision
        return packages(name) * sum(
            stored(weight, precision, weight.shape[0], path.removesuffix(".weight"))
            for path, weight in module.named_parameters(prefix=prefix)
        )

    buckets = {
        length
        for program in manifest.programs
        if program.backend == backend and program.name == "embed"
        for length in program.lengths or [manifest.max_length]
    }
    position, precision = model.encoder.embeddings.position.weight, manifest.program("embed", backend).precision
    positions = sum(stored(position, precision, min(length, position.shape[0])) for length in buckets)
    all_positions = packages("embed") * stored(position, precision, position.shape[0])
    return Parts(
        embeddings=stored_whole(model.encoder.embeddings, "embed", "embeddings") - all_positions + positions,
        layers=stored_whole(model.encoder.layers, "segment_0", "layers"),
        heads=stored_whole(model.heads, "segment_0", "exits"),
    )
