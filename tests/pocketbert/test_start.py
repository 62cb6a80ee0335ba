"""A first answer costs no more than it needs: what is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pocketbert

# Only ends a hang: no test here depends on how fast the machine is.
pytestmark = pytest.mark.timeout(3600)

ROOT = Path(__file__).parents[2]
# Beside the standard library and what torch imports itself.
NEEDED = {
    "annotated_types",
    "executorch",
    "numpy",
    "pipeline",
    "pocketbert",
    "pydantic",
    "pydantic_core",
    "tokenizers",
    "torch",
    "typing_extensions",
    "typing_inspection",
}
NEEDED_BY_THE_COMMAND_LINE = {"annotated_doc", "click", "rich", "shellingham", "typer"}
RUN_COMMAND = """
import sys
from pipeline import cli
sys.argv[0] = "pocketbert"
try:
    cli.main()
except SystemExit as stopped:
    assert not stopped.code
"""
LIST_MODULES = "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"


def modules_after(code: str, *arguments: str) -> set[str]:
    """Returns the modules that a new process has loaded after some code."""
    done = subprocess.run(
        [sys.executable, "-c", code + LIST_MODULES, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names)


@pytest.fixture(scope="module")
def of_torch() -> set[str]:
    return modules_after("import torch")


def test_importing_pocketbert_imports_no_library(of_torch):
    loaded = modules_after("import pocketbert")
    assert packages(loaded) <= {"pipeline", "pocketbert"} | packages(modules_after(""))


ANSWERS = {
    "classification": "classify('bala dume').label",
    "qa": "answer('bala?', 'dume nofi').answer",
    "regression": "estimate('bala dume').value",
}


@pytest.mark.parametrize("task", ANSWERS)
def test_an_answer_imports_what_it_needs(task, of_torch, tiny_classifier, tiny_qa, tiny_regressor):
    tiny = {"classification": tiny_classifier, "qa": tiny_qa, "regression": tiny_regressor}[task]
    loaded = modules_after(
        f"import pocketbert, sys\nprint(pocketbert.load(sys.argv[1]).{ANSWERS[task]})", str(tiny.path)
    )
    assert packages(loaded - of_torch) <= NEEDED
    assert "executorch.exir" not in loaded and "torch._dynamo" not in loaded - of_torch
    assert not any(name.startswith("pipeline.data.demo.") for name in loaded)


def test_the_command_imports_what_it_needs(of_torch, tiny_classifier):
    code = RUN_COMMAND
    loaded = modules_after(code, "predict", str(tiny_classifier.path), "--text", "bala dume")
    assert packages(loaded - of_torch) <= NEEDED | NEEDED_BY_THE_COMMAND_LINE
    assert "executorch.exir" not in loaded


def test_every_public_name_is_there():
    for name in pocketbert.__all__:
        assert getattr(pocketbert, name) is not None and name in dir(pocketbert)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        pocketbert.lod  # noqa: B018
