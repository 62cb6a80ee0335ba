"""The wheel has one top-level package, and its modules import nothing by the names that the checkout has."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def rewrite():
    pytest.importorskip("setuptools.command.bdist_wheel")
    return runpy.run_path(str(ROOT / "setup.py"))["rewrite_imports"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from pipeline.names import Task", "from pocketbert._internal.pipeline.names import Task"),
        ("from pipeline import __version__", "from pocketbert._internal.pipeline import __version__"),
        (
            "def f():\n    import quantize.size as size",
            "def f():\n    import pocketbert._internal.quantize.size as size",
        ),
        ("find_spec('pipeline.cli')", "find_spec('pocketbert._internal.pipeline.cli')"),
        ("import_module('quantize.size')", "import_module('pocketbert._internal.quantize.size')"),
        ("command = ['-m', 'quantize']", "command = ['-m', 'pocketbert._internal.quantize']"),
        ("LAZY = {'é': 'pipeline.cli'}", "LAZY = {'é': 'pocketbert._internal.pipeline.cli'}"),
        # A recipe's key, a word of a sentence and another's package stay as they are.
        ("field = 'quantize.embeddings'", "field = 'quantize.embeddings'"),
        ('"The room `pipeline.cli`."', '"The room `pipeline.cli`."'),
        ("import pipelines\nfrom transformers import pipeline", "import pipelines\nfrom transformers import pipeline"),
    ],
)
def test_names_of_our_modules_change_and_nothing_else_does(rewrite, source, expected):
    assert rewrite(source, "file.py") == expected


@pytest.mark.parametrize("source", ["import pipeline", "import pipeline.cli", "from \\\n pipeline import cli"])
def test_what_cannot_be_rewritten_fails_the_build(rewrite, source):
    with pytest.raises(SystemExit, match="file.py:1"):
        rewrite(source, "file.py")


def test_every_file_of_the_project_can_be_rewritten(rewrite):
    for folder in ("pipeline", "quantize", "pocketbert"):
        for path in (ROOT / folder).rglob("*.py"):
            text = rewrite(path.read_text(encoding="utf-8"), str(path))
            assert "\nfrom pipeline" not in text and "\nfrom quantize" not in text


def test_python_m_pocketbert_is_the_command_and_completes_names(tmp_path):
    run = tmp_path / "runs" / "mine" / "bundle"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def output(*arguments: str, **more: str) -> str:
        command = [sys.executable, "-m", "pocketbert", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**environment, **more})
        return done.stdout

    assert output("--version").startswith("pocketbert ")
    for words, expected in (
        ("run demo-", ["demo-classification", "demo-qa"]),
        ("predict runs/m", ["runs/mine"]),
        ("evaluate runs/mine demo --speed exact,f", ["exact,fast", "exact,full"]),
    ):
        code = "import sys; sys.argv[0] = 'pocketbert'; from pipeline.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={
                **environment,
                "_POCKETBERT_COMPLETE": "complete_bash",
                "COMP_WORDS": f"pocketbert {words}",
                "COMP_CWORD": str(len(words.split())),
            },
        )
        assert done.stdout.split() == expected, done.stderr
