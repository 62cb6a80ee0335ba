"""The examples do what they say, with a tiny bundle in place of a trained one."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import pocketbert

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_notebook_runs_from_top_to_bottom(tiny_classifier, tmp_path):
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    environment = os.environ | {
        "POCKETBERT_BUNDLE": str(tiny_classifier.path),
        "PYTHONPATH": str(EXAMPLES.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(cells)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    speeds = pocketbert.load(tiny_classifier.path).manifest.speeds
    assert done.stdout.count("Not half as dull as I feared.") == 1 + len(speeds)


def test_the_notebook_is_kept_without_outputs():
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])


def test_lines_of_a_file_are_answered(tiny_classifier, tmp_path, capsys, monkeypatch):
    (tmp_path / "lines.txt").write_text("the cat sat\n\non a mat\n", encoding="utf-8")
    main = runpy.run_path(str(EXAMPLES / "predict.py"))["main"]
    main(str(tiny_classifier.path), str(tmp_path / "lines.txt"))
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    runner = pocketbert.load(tiny_classifier.path)
    assert [row[-1] for row in rows] == ["the cat sat", "on a mat"]
    assert [row[0] for row in rows] == [runner.classify(row[-1], speed="exact").label for row in rows]


def test_the_table_of_the_example_has_a_recipe(tmp_path):
    write_table = runpy.run_path(str(EXAMPLES / "own_table.py"))["write_table"]
    write_table(tmp_path / "messages.csv")
    with (tmp_path / "messages.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["message"] for row in rows}) == len(rows) == 500
    recipe = pocketbert.init(tmp_path / "messages.csv").recipe
    assert (recipe.task, recipe.data.text, recipe.data.label) == ("classification", "message", "topic")


@pytest.mark.parametrize("name", ["checkpoint.py", "predict.py"])
def test_an_example_without_its_arguments_says_what_it_needs(name):
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True)
    assert done.returncode == 1 and f"python examples/{name}" in done.stderr
