"""The manifest: what a bundle says of itself. All runtimes read it; `export` writes it; its JSON schema is generated from here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer

from pipeline.data.labels import LabelRange
from pipeline.data.options import InputOptions, QuestionOptions
from pipeline.names import Backend, Metric, Task, Uncertainty
from pipeline.support.digests import sha256_of
from pipeline.support.errors import UserError
from pipeline.tasks import AnswerContext, get_task

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"


class Strict(BaseModel):
    """Unknown fields are refused: a reader must not pass over what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tensor(Strict):
    """One input or output. A dimension is a number, or "length" for the number of tokens."""

    name: str
    dtype: Literal["int32", "int64", "float32", "float16"]
    shape: list[int | Literal["length"]]


class File(Strict):
    """A file of the bundle; `path` is relative to the bundle, with forward slashes."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Program(Strict):
    """One program: `embed` or `segment_k`, for one backend.

    `file` names an entry of `files`; for a package that is a folder, the folder. `method` is the method in a `.pte` or the function in
    an `.mlpackage`. `lengths` are the bucket sizes of a program with fixed shapes; null means any length from 2 to `max_length`. A method takes
    and gives its tensors in the order of `inputs` and `outputs`.
    """

    name: str
    backend: Backend
    file: str
    method: str
    precision: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    lengths: list[int] | None = None


class Tokenizer(Strict):
    """WordPiece: its vocabulary file, its options, its special ids."""

    kind: Literal["wordpiece"] = "wordpiece"
    vocab_file: str = "vocab.txt"
    vocab_size: int
    lowercase: bool
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int


class QAOptions(Strict):
    """How a passage is cut into windows and a span is chosen; lengths in tokens."""

    window: int
    stride: int
    max_question: int
    max_answer: int
    allow_no_answer: bool
    null_threshold: float = 0.0


class ExitOptions(Strict):
    """What a runner compares with a threshold: the programs' `uncertainty`, with "patience", "agreement" and "change" a number of its own.

    Patience is 1 / (1 + n) where the n exits just before gave the same answer (label, or text of the answer), 1 at the first exit. The
    programs' `uncertainty` is the entropy then. Agreement is that entropy times patience. Change is |z - y|, at most 1, where y and z are the logits of the exit before and of this
    one, 1 at the first exit; a regression's programs have no output `uncertainty`.

    `temperatures` are what each exit's logits are divided by, within its program, before the uncertainty (not the answer) is computed
    from them; empty where all are 1.
    """

    uncertainty: Uncertainty = "entropy"
    temperatures: list[float] = Field(default_factory=list)


class Speed(Strict):
    """A named speed: a threshold for each exit, and what it gave on the calibration split.

    A sample leaves segment k when its uncertainty is below `thresholds[k]`; the last entry is not used. `metric` is a fraction of 1, see
    `Metric`. `max_loss` (with probability at least 1 - `delta`) bounds what is lost against full depth; null when not guaranteed.
    """

    thresholds: list[float]
    metric: Metric
    value: float
    value_full_depth: float
    mean_depth: float
    examples: int
    max_loss: float | None = None
    delta: float | None = None


class ModelShape(Strict):
    """The student's shape, for reports and size accounting."""

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocab_size: int
    parameters: int
    exit_layers: list[int]
    head: str


class Manifest(Strict):
    """The whole manifest, `manifest.json` in the bundle's root."""

    format_version: Literal[1] = FORMAT_VERSION
    name: str
    task: Task
    labels: list[str] = Field(default_factory=list, description="What an app shows, in the order of the logits.")
    label_values: list[str] = Field(default_factory=list, description="The same as the data files write them.")
    max_length: int = Field(description="The longest input in tokens, special tokens included.")
    model: ModelShape
    tokenizer: Tokenizer
    label_range: LabelRange | None = Field(
        None, description="Regression only: from the programs' numbers to the data's unit."
    )
    qa: QAOptions | None = None
    scheme: str
    embeddings_scheme: str
    matrix_schemes: dict[str, str] = Field(
        default_factory=dict,
        description="Of a mixed scheme, that of each matrix by its name; a reader need not know it to run the programs.",
    )
    programs: list[Program]
    exits: ExitOptions = ExitOptions()
    speeds: dict[str, Speed]
    files: list[File]
    provenance: dict[str, str] = Field(
        description="Where weights and data came from, and the versions of the tools that wrote this."
    )

    @model_serializer(mode="wrap")
    def without_empty_mix(self, serialize) -> dict:
        """`matrix_schemes` is written where there are any: readers that do not know the field read every other bundle."""
        raw = serialize(self)
        return raw if self.matrix_schemes else {name: value for name, value in raw.items() if name != "matrix_schemes"}

    @property
    def segments(self) -> int:
        return len(self.model.exit_layers)

    @property
    def head_outputs(self) -> int:
        """How many numbers a head gives for an input; for question answering, for a token."""
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
        """The program of that name for that backend; KeyError if there is none."""
        for program in self.programs:
            if program.name == name and program.backend == backend:
                return program
        raise KeyError(f"{backend} program {name}")


def json_schema() -> dict:
    """The manifest's JSON schema (draft 2020-12), for readers in other languages."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}


def describe_files(folder: Path) -> list[File]:
    """Every file below `folder` but the manifest, in the order of their paths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)
    return [
        File(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in paths
    ]


def read_manifest(bundle: str | Path, check_files: bool = True) -> Manifest:
    """Reads and checks a bundle's manifest, and with `check_files` that every file is there, whole and unaltered.

    Raises:
        UserError: naming the file and the field, for anything that does not fit.
    """
    bundle = Path(bundle)
    path = bundle / MANIFEST_FILE
    if not bundle.is_dir():
        raise UserError("is not a bundle folder; give the folder that `pocketbert run` wrote (OUT/bundle)", file=bundle)
    try:
        raw = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise UserError(
            "is missing; this folder is not a bundle, or the bundle is not whole: export it again", file=path
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path) from None
    except ValueError as error:
        raise UserError(f"is not JSON ({error}); the bundle was cut or altered: export it again", file=path) from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"format {version!r} is not known to this version, which reads format {FORMAT_VERSION}; export the bundle again",
            file=path,
            field="format_version",
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{first['msg']}; the bundle was altered: export it again", file=path, field=field) from None
    if check_files:
        for entry in manifest.files:
            check_file(bundle, entry)
    return manifest


def check_file(bundle: Path, entry: File) -> None:
    """Raises UserError unless the file is there with the manifest's size and checksum."""
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
        raise UserError("does not have the checksum that the manifest gives; export or download it again", file=path)
