"""Writes the two pages in a bundle that explain it: how an app uses it, and the model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.bundle.manifest import Manifest
from pipeline.names import APPLE_BACKENDS, Backend
from pipeline.recipe import Recipe
from pipeline.schemes import SCHEMES
from pipeline.support.workspace import write_text
from pipeline.tasks import get_task

USE_FILE, CARD_FILE = "USE.md", "MODEL_CARD.md"
MAX_LABELS = 30  # a page lists no more; the manifest has them all
UNKNOWN_LICENCE = "unknown"  # the pages compare with this word
MINILM_LICENCE, MINILM_NAME = "Apache-2.0", "sentence-transformers/all-MiniLM-L6-v2"
RUNS = {
    "executorch": "ExecuTorch with XNNPACK, on Android and iOS",
    "coreml": "Core ML, on iOS",
    "executorch-coreml": "ExecuTorch with its Core ML delegate, on iOS",
}
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+ -]{0,60}")


@dataclass(frozen=True)
class DataPart:
    """A part of the data: what it was for, the name of its source, and its number of examples."""

    purpose: str
    source: str
    rows: int


@dataclass(frozen=True)
class TrainingFacts:
    """What the model card says about training, which the manifest does not hold.

    Attributes:
        data: the parts of the data, without the folders that they lay in.
        scores: model -> score -> value on dev, all layers run; fractions of 1, or in the unit of the data.
    """

    data: Sequence[DataPart]
    scores: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class ProgramFiles:
    """The programs of one backend as a person sees them: what runs them, their files, and what they need."""

    backend: Backend
    runs: str
    files: str
    bytes: int
    lengths: str
    needs: str


def write_documents(folder: Path, manifest: Manifest, recipe: Recipe, training: TrainingFacts | None) -> None:
    """Writes USE.md and MODEL_CARD.md. The same arguments and files give the same bytes.

    Args:
        folder: the bundle, whose programs are written already.
        manifest: with its programs and requirements. Its list of files is not read.
        recipe: the recipe of the run, or the one that a checkpoint was quantized by.
        training: None where the weights were quantized as they stand, and nothing was trained.
    """
    values = {
        "manifest": manifest,
        "task": get_task(manifest.task),
        "recipe": recipe,
        "training": training,
        "programs": [program_files(folder, manifest, backend) for backend in backends_of(manifest)],
        "vocabulary_bytes": (folder / manifest.tokenizer.vocab_file).stat().st_size,
        "segment": manifest.program("segment_0", backends_of(manifest)[0]),
        "last": manifest.segments - 1,
        "labels": manifest.labels[:MAX_LABELS],
        "more_labels": max(0, len(manifest.labels) - MAX_LABELS),
        "weights": shown_source(recipe.teacher.weights),
        "minilm": MINILM_NAME if recipe.teacher.weights == "minilm" else "",
        "licence": licence_of(recipe.teacher.weights),
        "summary": SCHEMES[manifest.scheme].summary if manifest.scheme in SCHEMES else "",
        "distance": shown_words(manifest.provenance.get("relative_error", "")),
    }
    for name in (USE_FILE, CARD_FILE):
        write_text(folder / name, environment().get_template(f"{name}.j2").render(values))


def backends_of(manifest: Manifest) -> list[Backend]:
    """Returns the backends that a bundle has programs for, in the order of `Backend`."""
    present = {program.backend for program in manifest.programs}
    return [backend for backend in get_args(Backend) if backend in present]


def program_files(folder: Path, manifest: Manifest, backend: Backend) -> ProgramFiles:
    """Returns what a page says about the programs of one backend."""
    programs = [program for program in manifest.programs if program.backend == backend]
    files = sorted({program.file for program in programs})
    lengths = sorted({length for program in programs for length in program.lengths or ()})
    needed = manifest.requires.get(backend)
    needs = []
    if needed is not None:
        needs += [f"ExecuTorch {needed.executorch}"] if needed.executorch else []
        needs += [f"iOS {needed.ios}"] if needed.ios else []
        needs += [f"Android API level {needed.android_api}"] if needed.android_api else []
    folders = sorted({str(Path(file).parent) for file in files})
    shown = f"{folders[0]}/*.mlpackage" if backend == "coreml" and len(folders) == 1 else ", ".join(files)
    return ProgramFiles(
        backend=backend,
        runs=RUNS[backend],
        files=shown,
        bytes=sum(_bytes_of(folder / file) for file in files),
        lengths=", ".join(map(str, lengths)) if backend in APPLE_BACKENDS else f"2 to {manifest.max_length}",
        needs=", ".join(needs),
    )


def _bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def shown_source(source: str) -> str:
    """Returns the name of a data file or a checkpoint without the folders that it lies in. Hub names stay whole."""
    is_path = source.startswith((".", "~")) or Path(source).is_absolute() or Path(source).exists()
    return Path(source).name if is_path else source


def shown_words(text: str) -> str:
    """Returns a text with every path in it cut to its last part."""
    return " ".join(re.split(r"[/\\]", word)[-1] if re.match(r"[~.]?[/\\]|\w:[/\\]", word) else word
                    for word in text.split(" "))  # fmt: skip


def licence_of(weights: str) -> str:
    """Returns the licence of a checkpoint: what its README.md or its config.json says, else "unknown".

    Args:
        weights: "minilm" for the offline package, a folder, or a hub name. Nothing is downloaded for this.
    """
    if weights == "minilm":
        return MINILM_LICENCE
    folder = Path(weights)
    for read in (_licence_in_card, _licence_in_config):
        licence = read(folder)
        if isinstance(licence, str) and _LICENCE.fullmatch(licence):  # somebody else's file may hold anything
            return licence
    return UNKNOWN_LICENCE


def _licence_in_card(folder: Path) -> object:
    from huggingface_hub import metadata_load

    try:
        metadata: Any = metadata_load(folder / "README.md")
    except Exception:  # no file, not UTF-8, or no YAML: the parser has errors of its own
        return None
    return metadata.get("license") if isinstance(metadata, dict) else None


def _licence_in_config(folder: Path) -> object:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("license") if isinstance(config, dict) else None


def environment() -> Environment:
    """Returns Jinja's environment for Markdown pages. It refuses undefined names."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # Markdown; `code` makes strings of the data harmless
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters.update(code=code, megabytes=megabytes)
    return templates


def code(text: str) -> str:
    """Writes a string of the data as Markdown code, whatever is in it: one line, and the fence is longer than any."""
    line = " ".join(str(text).split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}".replace("|", "\\|")


def megabytes(size: int) -> str:
    """Writes bytes in megabytes with one decimal, or in kilobytes below 0.1 MB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
