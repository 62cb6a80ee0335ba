"""The command that prepares a bundle for an app: slice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from pipeline.commands.options import AsJson, BundleFolder, print_json


def slice(
    bundle: BundleFolder,
    target: Annotated[str, typer.Option(metavar="android|ios", help="The platform of the app.")],
    runtime: Annotated[
        Optional[str],
        typer.Option(
            metavar="coreml|executorch",
            help="What runs the programs. On iOS Core ML by default, if the bundle has it.",
        ),
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option(metavar="PATH", help="Folder or archive to write; by default BUNDLE-TARGET beside the bundle."),
    ] = None,
    archive: Annotated[
        bool, typer.Option("--archive", help="Write one zip file, which an app can download, and not a folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Writes the bundle that an app ships, without the other platform's programs.

    It opens, verifies and answers as the whole bundle does.
    """
    from pipeline.bundle.opening import find_bundle
    from pipeline.bundle.slicing import plan_slice, slice_bundle
    from quantize.size import bundle_bytes

    bundle = find_bundle(bundle)
    plan = plan_slice(bundle, target, runtime)  # type: ignore[arg-type]  # both names are checked there
    path = slice_bundle(bundle, plan.target, plan.runtime, out, archive)
    size = path.stat().st_size if archive else plan.bytes
    whole = bundle_bytes(bundle)
    if as_json:
        print_json(
            {
                "path": str(path),
                "target": plan.target,
                "runtime": plan.runtime,
                "backend": plan.backend,
                "bytes": size,
                "whole_bytes": whole,
            }
        )
        return
    print(f"{path}: {size / 1e6:.1f} of {whole / 1e6:.1f} MB, for {plan.target} with {plan.backend} programs")
    print(f"check it: pocketbert verify {path}" if not archive else "unpack it in the app: see docs/shipping.md")
