"""The manifest of a bundle: its fields, its JSON schema, and its reader. docs/bundle-format.md is the specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.bundle.fields import BundleDocument, read_document
from pipeline.bundle.requirements import Requirements, minor_of
from pipeline.data.labels import LabelRange
from pipeline.data.options import InputOptions, QuestionOptions
from pipeline.names import Backend, Metric, Task, Uncertainty
from pipeline.support.digests import sha256_of
from pipeline.support.document import Document
from pipeline.support.errors import UserError
from pipeline.tasks import AnswerContext, get_task

MANIFEST_FILE = "manifest.json"


class TensorSpec(Document):
    """The name, the type and the shape of one input or output of a program."""

    name: str
    # Not a list of the types there are: a reader skips outputs that it does not know, whatever their type.
    dtype: str = Field(description='"int32", "int64", "float32" or "float16".')
    shape: list[int | Literal["length"]] = Field(description='A dimension; "length" stands for the number of tokens.')


class File(Document):
    """A file of the bundle. `path` is relative to the bundle's folder, with forward slashes."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Program(Document):
    """One program, `embed` or `segment_K`, for one backend.

    Attributes:
        file: the `path` of an entry in the manifest's `files`. For a package, which is a folder, the path of that
            folder.
        method: the method in a `.pte`, or the function in an `.mlpackage`.
        precision: how the weights are stored, the name of a scheme.
        inputs, outputs: the tensors in the order in which the method takes and returns them.
        lengths: the numbers of tokens that a program with fixed shapes takes. Null means any length from 2 to the
            manifest's `max_length`.
    """

    name: str
    backend: Backend
    file: str
    method: str
    precision: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    lengths: list[int] | None = None


class Tokenizer(Document):
    """The WordPiece tokenizer: its vocabulary file, its options and the ids of its special tokens."""

    kind: Literal["wordpiece"] = "wordpiece"
    vocab_file: str = "vocab.txt"
    vocab_size: int
    lowercase: bool
    strip_accents: bool | None = Field(
        None, description="Whether accents are dropped; null: where the case is lowered. Since minor version 2."
    )
    handle_chinese_chars: bool = Field(
        True, description="Whether every Chinese character is a word of its own. Since minor version 2."
    )
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int

    def fields_of_minor_2(self) -> list[str]:
        """Returns the fields of minor version 2 that are not the default. A reader must know these."""
        fields = {"strip_accents": self.strip_accents is None, "handle_chinese_chars": self.handle_chinese_chars}
        return [name for name, is_default in fields.items() if not is_default]

    @model_serializer(mode="wrap")
    def without_unused_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Writes the fields of minor version 2 only where they are not the default."""
        raw: dict[str, Any] = serialize(self)
        unused = {"strip_accents", "handle_chinese_chars"} - set(self.fields_of_minor_2())
        return {name: value for name, value in raw.items() if name not in unused}


class QAOptions(Document):
    """How a passage is cut into windows, and how an answer is chosen. Lengths are in tokens."""

    window: int
    stride: int
    max_question: int
    max_answer: int
    allow_no_answer: bool
    null_threshold: float = 0.0


class ExitOptions(Document):
    """The measure of uncertainty that a runner compares with the thresholds (`pipeline.bundle.exit_rule`).

    Attributes:
        uncertainty: the measure. The programs compute "entropy", "max_probability" and "margin". The runner computes
            "patience", "agreement" and "change" from the answers of successive exits.
        temperatures: one number per exit. Its program divides the logits by it before it computes the uncertainty; the
            answer does not change. Empty where all are 1.
    """

    uncertainty: Uncertainty = "entropy"
    temperatures: list[float] = Field(default_factory=list)


class Speed(Document):
    """A named speed: one threshold per exit, and what the speed did on the calibration split.

    Attributes:
        thresholds: an input leaves after segment k when its uncertainty is below `thresholds[k]`. The last entry is
            not used.
        metric: the score that `value` and `value_full_depth` are in, a fraction of 1.
        mean_depth: the mean number of segments that ran.
        examples: the number of calibration examples.
        max_loss: with probability 1 - `delta`, the speed loses at most this much of the score at full depth. Null
            where nothing is guaranteed.
    """

    thresholds: list[float]
    metric: Metric
    value: float
    value_full_depth: float
    mean_depth: float
    examples: int
    max_loss: float | None = None
    delta: float | None = None


class ModelShape(Document):
    """The shape of the student, for reports and size accounting."""

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int | None = Field(
        None, ge=1, description="The rows of the position table; null in bundles of minor version 0."
    )
    token_types: int | None = Field(
        None,
        ge=0,
        description="The rows of the token-type table, 0 where there is none; null in bundles of minor version 0.",
    )
    parameters: int
    exit_layers: list[int]
    head: str


class Manifest(BundleDocument):
    """The file `manifest.json` in the bundle's folder."""

    format_minor: int = Field(0, ge=0, description="Counts the additions to the format. A reader accepts any number.")
    name: str
    task: Task
    labels: list[str] = Field(default_factory=list, description="What an app shows, in the order of the logits.")
    label_values: list[str] = Field(
        default_factory=list, description="The same labels as the data files write them, in the same order."
    )
    max_length: int = Field(description="The longest input in tokens, special tokens included.")
    model: ModelShape
    tokenizer: Tokenizer
    label_range: LabelRange | None = Field(
        None, description="Regression only: converts the programs' numbers to the data's unit."
    )
    qa: QAOptions | None = None
    scheme: str
    embeddings_scheme: str
    matrix_schemes: dict[str, str] = Field(
        default_factory=dict,
        description="The scheme of each matrix by its name, where the scheme is mixed; not needed to run the programs.",
    )
    programs: list[Program]
    requires: dict[str, Requirements] = Field(
        default_factory=dict, description="The oldest versions that run the programs of a backend, by backend."
    )
    exits: ExitOptions = ExitOptions()
    speeds: dict[str, Speed]
    files: list[File]
    provenance: dict[str, str] = Field(
        description="Where weights and data came from, and the versions of the tools that wrote the bundle."
    )

    @model_serializer(mode="wrap")
    def without_empty_matrix_schemes(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Writes `matrix_schemes` only where the scheme is mixed."""
        raw: dict[str, Any] = serialize(self)
        return {name: value for name, value in raw.items() if name != "matrix_schemes" or value}

    @property
    def segments(self) -> int:
        """The number of segments, which is the number of exits."""
        return len(self.model.exit_layers)

    @property
    def head_outputs(self) -> int:
        """How many numbers an exit head returns for an input; for question answering, for a token."""
        return get_task(self.task).head_outputs(len(self.labels))

    @property
    def answer_context(self) -> AnswerContext:
        """What reading an answer takes, beside logits."""
        question = None if self.qa is None else QuestionOptions(**self.qa.model_dump())
        return AnswerContext(
            InputOptions(self.max_length, question), tuple(self.labels), tuple(self.label_values), self.label_range
        )

    @property
    def uncertainty(self) -> Uncertainty:
        """The measure that the thresholds of the speeds are for."""
        return self.exits.uncertainty

    def program(self, name: str, backend: str = "executorch") -> Program:
        """Returns the program of that name for that backend. KeyError if there is none."""
        for program in self.programs:
            if program.name == name and program.backend == backend:
                return program
        raise KeyError(f"{backend} program {name}")

    def required_executorch(self, backend: Backend) -> str | None:
        """Returns the oldest ExecuTorch that runs a backend's programs, or None where the bundle does not say.

        Bundles of minor version 0 have no `requires`. They name the version that wrote their programs, and older ones
        do not run them.
        """
        if backend in self.requires:
            return self.requires[backend].executorch
        writer = self.provenance.get("executorch")
        return None if writer is None else minor_of(writer)


def json_schema() -> dict[str, Any]:
    """Returns the manifest's JSON schema (draft 2020-12), for readers in other languages.

    It accepts what a reader accepts: unknown fields at every level, and programs of unknown backends whatever they
    look like.
    """
    schema = _open(Manifest.model_json_schema())
    unknown = {"type": "string", "not": {"enum": list(get_args(Backend))}}
    programs = schema["properties"]["programs"]
    programs["items"] = {
        "anyOf": [
            programs["items"],
            {"type": "object", "properties": {"backend": unknown}, "required": ["backend"]},
        ]
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _open(schema: Any) -> Any:
    """Leaves out every `additionalProperties: false`."""
    if isinstance(schema, dict):
        return {
            key: _open(value) for key, value in schema.items() if not (key == "additionalProperties" and value is False)
        }
    return [_open(value) for value in schema] if isinstance(schema, list) else schema


def describe_files(folder: Path) -> list[File]:
    """Describes every file below `folder` except the manifest, in the order of their paths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)
    return [
        File(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in paths
    ]


def read_manifest(bundle: str | Path, check_files: bool = True) -> Manifest:
    """Reads and checks the manifest of a bundle.

    Args:
        bundle: the bundle's folder.
        check_files: whether to compare every file with the size and the checksum in the manifest.

    Raises:
        UserError: naming the file and the field, for a manifest that cannot be read or a file that does not fit it.
    """
    bundle = Path(bundle)
    if not bundle.is_dir():
        raise UserError("is not a bundle folder; give the folder that `pocketbert run` wrote (OUT/bundle)", file=bundle)
    manifest = read_document(bundle / MANIFEST_FILE, Manifest)
    if check_files:
        for entry in manifest.files:
            check_file(bundle, entry)
    return manifest


def check_file(bundle: Path, entry: File) -> None:
    """Raises UserError unless the file is there with the size and the checksum in the manifest."""
    path = bundle / entry.path
    if not path.is_file():
        raise UserError("is missing from the bundle; export or download it again", file=path)
    size = path.stat().st_size
    if size != entry.bytes:
        raise UserError(f"has {size} bytes, the manifest says {entry.bytes}; export or download it again", file=path)
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path) from None
    if digest != entry.sha256:
        raise UserError("does not have the checksum in the manifest; export or download it again", file=path)
