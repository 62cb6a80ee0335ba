"""Writes Core ML packages so that the same model gives the same bytes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

from pipeline.export.structure import Structure
from pipeline.support.quiet import import_quietly, quiet_logging, quiet_stderr

# Identifiers in a package's Manifest.json are made from the items' paths in this name space.
NAMESPACE = uuid.UUID("6f1d0b0e-4a53-5d0c-9c4e-7b7a1f3f2c11")


def write_package(functions: Mapping[str, Structure], package: Path) -> None:
    """Writes functions as one package, with the weights that they share only once.

    Several functions, or one that is not called `main`, need iOS 18.
    """
    ct = import_quietly("coremltools")
    from coremltools.converters.mil.converter import mil_convert
    from coremltools.converters.mil.mil import Program

    program = Program()
    program.skip_all_passes = True  # conversion has run them
    for name, structure in functions.items():
        program.add_function(name, structure.function)
    program.default_function_name = next(iter(functions))
    program.export_as_multifunction = list(functions) != ["main"]
    (target,) = {structure.target for structure in functions.values()}
    with quiet_stderr(), quiet_logging():
        model = mil_convert(
            program,
            convert_from="milinternal",
            convert_to="mlprogram",
            compute_units=ct.ComputeUnit.ALL,
            specification_version=ct.target[target].value,
            skip_model_load=True,
        )
        model.save(str(package))
    make_reproducible(package)


def make_reproducible(package: Path) -> None:
    """Removes what differs from run to run: the date, random identifiers, the order of maps, debugging files."""
    ct = import_quietly("coremltools")
    (package / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)

    path = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    spec.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    path.write_bytes(spec.SerializeToString(deterministic=True))
    for item in (package, *package.rglob("*")):  # coremltools lets only the owner read them
        item.chmod(0o755 if item.is_dir() else 0o644)

    path = package / "Manifest.json"
    listing = json.loads(path.read_bytes())
    names = {old: str(uuid.uuid5(NAMESPACE, item["path"])) for old, item in listing["itemInfoEntries"].items()}
    items = {names[old]: item for old, item in listing["itemInfoEntries"].items()}
    listing["itemInfoEntries"] = dict(sorted(items.items()))
    listing["rootModelIdentifier"] = names[listing["rootModelIdentifier"]]
    path.write_text(json.dumps(listing, indent=4) + "\n", encoding="utf-8")
