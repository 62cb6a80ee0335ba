"""Cuts out of a bundle what one platform runs, as a folder or as one archive.

docs/bundle-format.md, "Slices and archives", says what both look like.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.bundle.conformance import CONFORMANCE_FILE
from pipeline.bundle.manifest import MANIFEST_FILE, Manifest, read_manifest
from pipeline.names import Backend
from pipeline.support.digests import sha256_of
from pipeline.support.errors import UserError
from pipeline.support.workspace import is_full_disk

Target = Literal["android", "ios"]
Runtime = Literal["executorch", "coreml"]

ARCHIVE_SUFFIX = ".zip"
# The backends that serve a platform with a runtime, the preferred one first.
BACKENDS: dict[tuple[Target, Runtime], tuple[Backend, ...]] = {
    ("android", "executorch"): ("executorch",),
    ("ios", "coreml"): ("coreml",),
    ("ios", "executorch"): ("executorch-coreml", "executorch"),
}
# The runtimes of a platform, the one that is taken by default first.
RUNTIMES: dict[Target, tuple[Runtime, ...]] = {"android": ("executorch",), "ios": ("coreml", "executorch")}

_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first date that a zip file can hold: the same slice gives the same bytes
_FILE_MODE = 0o100644 << 16  # a regular file that everybody may read


@dataclass(frozen=True)
class Slice:
    """What an app ships of a bundle.

    Attributes:
        target, runtime, backend: what it is for; `backend` is the only one in its manifest.
        manifest: the text of its `manifest.json`.
        files: the paths of its other files, which are those of the whole bundle.
        bytes: the size of all files together.
    """

    target: Target
    runtime: Runtime
    backend: Backend
    manifest: str
    files: tuple[str, ...]
    bytes: int


def slice_bundle(
    bundle: str | Path,
    target: Target,
    runtime: Runtime | None = None,
    out: str | Path | None = None,
    archive: bool = False,
) -> Path:
    """Writes what an app for one platform ships of a bundle: a smaller bundle without the other platform's programs.

    The files that stay are unchanged. The manifest lists only the backend that the platform runs. The same bundle gives
    the same bytes.

    Args:
        bundle: the folder of the whole bundle. All its files are compared with their checksums first.
        target: "android" or "ios".
        runtime: "executorch", or "coreml" on iOS. By default Core ML on iOS if the bundle has it, else ExecuTorch.
        out: the folder or the archive to write; by default it lies beside the bundle and has its name and the target's.
        archive: whether to write one zip file, in which nothing is compressed, and not a folder.

    Returns:
        What was written. It appears whole or not at all.

    Raises:
        UserError: the bundle cannot be read, has no programs for this platform and runtime, or lists an unsafe path;
            `out` exists or lies in the bundle; or the disk is full.
    """
    bundle = Path(bundle)
    plan = plan_slice(bundle, target, runtime)
    suffix = ARCHIVE_SUFFIX if archive else ""
    if out is None:
        named = bundle if bundle.name not in ("", "..") else bundle.resolve()
        out = named.with_name(f"{named.name}-{target}{suffix}")
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise UserError("is already there; remove it, or give another place with --out", file=out)
    if out.resolve().is_relative_to(bundle.resolve()):
        raise UserError("lies in the bundle itself; give a place outside it with --out", file=out)
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)  # what a killed command left
        write = _write_archive if archive else _write_folder
        write(bundle, plan, partial)
        os.rename(partial, out)
    except OSError as error:
        if is_full_disk(error):
            raise UserError("the disk is full; free some space and run the same command again", file=out) from None
        raise UserError(f"cannot be written ({error.strerror}); give another place with --out", file=out) from None
    finally:
        _remove(partial)
    return out


def plan_slice(bundle: str | Path, target: Target, runtime: Runtime | None = None) -> Slice:
    """Returns what a slice holds, without writing it; arguments and errors are those of `slice_bundle`."""
    bundle = Path(bundle)
    manifest = read_manifest(bundle)
    file = bundle / MANIFEST_FILE
    runtime, backend = choose_backend(manifest, file, target, runtime)
    # The manifest as it is written, so that fields of a later minor version stay.
    raw = json.loads(file.read_bytes().decode("utf-8"))
    programs = raw["programs"]
    kept = [program for program in programs if program.get("backend") == backend]
    others = [program for program in programs if program.get("backend") != backend]
    files = [
        entry for entry in raw["files"] if _is_part_of(entry["path"], kept) or not _is_part_of(entry["path"], others)
    ]
    _require_files(manifest, file, [entry["path"] for entry in files], backend)
    raw["programs"], raw["files"] = kept, files
    if "requires" in raw:
        raw["requires"] = {name: needed for name, needed in raw["requires"].items() if name == backend}
    raw["provenance"] = raw["provenance"] | {"slice": f"{target}, {runtime}", "slice_of": sha256_of(file)}
    text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
    size = len(text.encode("utf-8")) + sum(entry["bytes"] for entry in files)
    return Slice(target, runtime, backend, text, tuple(entry["path"] for entry in files), size)


def available_slices(manifest: Manifest) -> list[tuple[Target, Runtime]]:
    """Returns every platform and runtime that a bundle has programs for."""
    backends = {program.backend for program in manifest.programs}
    return [pair for pair, served in BACKENDS.items() if backends.intersection(served)]


def choose_backend(
    manifest: Manifest, file: Path, target: Target, runtime: Runtime | None = None
) -> tuple[Runtime, Backend]:
    """Returns the runtime and the backend of a platform; `file` is the manifest, for the message.

    Raises:
        UserError: the platform or the runtime is unknown, they do not go together, or the bundle has no programs for
            them.
    """
    for name, value, known in (("--target", target, get_args(Target)), ("--runtime", runtime, get_args(Runtime))):
        if value is not None and value not in known:
            raise UserError(f"{value!r} is not known; take {' or '.join(known)}", field=name)
    if runtime is not None and runtime not in RUNTIMES[target]:
        raise UserError("Android has no Core ML; leave --runtime out, or take --target ios", field="--runtime")
    backends = {program.backend for program in manifest.programs}
    for candidate in RUNTIMES[target] if runtime is None else (runtime,):
        for backend in BACKENDS[target, candidate]:
            if backend in backends:
                return candidate, backend
    found = ", ".join(sorted(backends)) or "nothing"
    if runtime == "coreml":
        way_out = "export it with --set export.coreml=true, or take --runtime executorch"
    else:
        way_out = "give the whole bundle, from which this one was cut" if "slice" in manifest.provenance else ""
        way_out = way_out or "export the bundle again"
    raise UserError(
        f"has no programs for {target}{f' with {runtime}' if runtime else ''}, only for {found}; {way_out}",
        file=file,
        field="programs",
    )


def _is_part_of(path: str, programs: Sequence[dict[str, Any]]) -> bool:
    """Whether a file belongs to one of the programs; the programs in a package share its folder."""
    files = {str(program.get("file")) for program in programs}
    return any(path == file or path.startswith(file + "/") for file in files)


def _require_files(manifest: Manifest, file: Path, kept: Sequence[str], backend: Backend) -> None:
    """Raises UserError unless a slice would have every program of the backend, the vocabulary and the vectors."""
    names = ["embed", *(f"segment_{index}" for index in range(manifest.segments))]
    for name in names:
        programs = [program for program in manifest.programs if (program.name, program.backend) == (name, backend)]
        if not programs or not all(_has(kept, program.file) for program in programs):
            raise UserError(
                f"has no {backend} program {name!r} with its file; export the bundle again", file=file, field="programs"
            )
    if len({*kept, MANIFEST_FILE}) != len(kept) + 1:
        raise UserError("names a file twice, or the manifest; export the bundle again", file=file, field="files")
    for path in (manifest.tokenizer.vocab_file, CONFORMANCE_FILE):
        if path not in kept:
            raise UserError(f"{path!r} is not in the list; export the bundle again", file=file, field="files")


def _has(paths: Sequence[str], file: str) -> bool:
    return any(path == file or path.startswith(file + "/") for path in paths)


def _write_folder(bundle: Path, plan: Slice, folder: Path) -> None:
    folder.mkdir()
    for path in plan.files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / path, folder / path)  # a link becomes the file that it points to
    (folder / MANIFEST_FILE).write_bytes(plan.manifest.encode("utf-8"))


def _write_archive(bundle: Path, plan: Slice, file: Path) -> None:
    """Writes a zip file in which nothing is compressed, so that a few lines of code unpack it on any platform."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted((*plan.files, MANIFEST_FILE)):
            content = plan.manifest.encode("utf-8") if path == MANIFEST_FILE else (bundle / path).read_bytes()
            entry = zipfile.ZipInfo(path, _EARLIEST)
            entry.create_system, entry.external_attr = 3, _FILE_MODE  # the same on every operating system
            archive.writestr(entry, content)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
