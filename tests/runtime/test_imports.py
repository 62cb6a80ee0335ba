"""Running a bundle imports nothing that trains, exports or measures one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Every folder of the project that a runtime may import. All others are forbidden, those that do not exist yet too.
ALLOWED = ("bundle", "data", "names", "runtime", "schemes", "support", "tasks")
IMPORT_AND_LIST = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def modules_in(folder: str) -> list[str]:
    files = sorted((ROOT / "pipeline" / folder).rglob("*.py"))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


def modules_after_importing(names: list[str]) -> list[str]:
    """Imports modules in a fresh process and returns everything that is loaded then."""
    command = [sys.executable, "-c", IMPORT_AND_LIST, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("folder", ["bundle", "runtime"])
def test_the_whole_folder_imports_no_model_code_and_no_trainer(folder):
    names = modules_in(folder)
    assert f"pipeline.{folder}" in names and len(names) > 3
    loaded = modules_after_importing(names)
    parts = [name.split(".") for name in loaded]
    assert {part[1] for part in parts if part[0] == "pipeline" and len(part) > 1} <= set(ALLOWED)
    packages = {part[0] for part in parts}
    assert packages.isdisjoint({"transformers", "accelerate", "datasets", "torchao", "coremltools", "quantize"})
    assert "executorch.exir" not in loaded


def test_opening_a_bundle_needs_no_torch():
    """Only `pipeline.runtime` does, since ExecuTorch's Python runtime links against it."""
    assert "torch" not in modules_after_importing(modules_in("bundle"))
