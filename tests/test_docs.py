"""The pages' command blocks are run as a reader would run them, and their figures are those of the runs' JSON."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pocketbert
from pipeline.recipe.keys import list_keys
from pipeline.schemes import SCHEMES

ROOT = Path(__file__).resolve().parents[1]


def load(name):
    """Imports a script of docs/, which is no package."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "docs"))


run_blocks = load("run_blocks")
figures = load("figures")


def page(*lines):
    return "\n".join(lines) + "\n"


def test_blocks_share_one_folder_and_run_in_order(tmp_path):
    text = page(
        "```sh",
        "echo one > seen",
        "```",
        "```python",
        "open('seen', 'a').write('two')",
        "```",
        "```text",
        "exit 1",
        "```",
    )
    blocks = list(run_blocks.blocks_of(text, "page.md"))
    run_blocks.run_blocks(blocks, Path(sys.executable).parent, tmp_path)
    assert (tmp_path / "seen").read_text() == "one\ntwo"


def test_python_blocks_of_a_page_share_their_names(tmp_path):
    text = page(
        *("```python", "seen = [1]", "open('once', 'x').close()", "```"),
        *("<!-- not run here: would fail -->", "```python", "seen = None", "```"),
        *("```python", "seen.append(2)", "assert seen == [1, 2]", "```"),
    )
    run_blocks.run_blocks(list(run_blocks.blocks_of(text, "page.md")), Path(sys.executable).parent, tmp_path)
    (other,) = run_blocks.blocks_of(page("```python", "seen", "```"), "other.md")
    with pytest.raises(run_blocks.BlockError, match="other.md:1"):
        run_blocks.run_blocks([other], Path(sys.executable).parent, tmp_path)


def test_a_failing_command_in_the_middle_of_a_block_is_named(tmp_path):
    blocks = list(run_blocks.blocks_of(page("words", "```sh", "false", "true", "```"), "page.md"))
    with pytest.raises(run_blocks.BlockError, match="page.md:2: the block ended with 1"):
        run_blocks.run_blocks(blocks, Path(sys.executable).parent, tmp_path)


def test_a_marked_block_is_skipped_with_its_reason(tmp_path, capsys):
    text = page("<!-- not run here: needs a Mac -->", "```sh", "false", "```")
    run_blocks.run_blocks(list(run_blocks.blocks_of(text, "page.md")), Path(sys.executable).parent, tmp_path)
    assert "page.md:2: not run here: needs a Mac" in capsys.readouterr().out


@pytest.mark.parametrize("mark", ["<!-- not run here -->", "<!-- not run here: -->", "<!-- run with: -->"])
def test_a_mark_without_a_reason_fails(mark):
    with pytest.raises(run_blocks.BlockError, match="says nothing"):
        list(run_blocks.blocks_of(page(mark, "```sh", "true", "```"), "page.md"))


def test_a_mark_away_from_its_block_fails():
    with pytest.raises(run_blocks.BlockError, match="on the line before a block"):
        list(run_blocks.blocks_of(page("<!-- not run here: slow -->", "", "```sh", "true", "```"), "page.md"))


def test_more_arguments_reach_every_run_and_no_other_command(tmp_path):
    tool = tmp_path / "bin" / "pocketbert"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@" >> calls\n')
    tool.chmod(0o755)
    text = page(
        "<!-- run with: --set a=1 -->",
        "```sh",
        "pocketbert run x \\",
        "    --out y   # a comment",
        "pocketbert size y",
        "```",
    )
    run_blocks.run_blocks(list(run_blocks.blocks_of(text, "page.md")), tool.parent, tmp_path)
    assert (tmp_path / "calls").read_text() == "run x --out y --set a=1\nsize y\n"


def test_blocks_that_take_too_long_are_stopped(tmp_path):
    blocks = list(run_blocks.blocks_of(page("```sh", "sleep 30", "```"), "page.md"))
    with pytest.raises(run_blocks.BlockError, match="took longer than 0 s"):
        run_blocks.run_blocks(blocks, Path(sys.executable).parent, tmp_path, budget=0)


def test_the_pages_of_ci_can_be_read():
    for name in ("README.md", "docs/quickstart.md"):
        assert list(run_blocks.blocks_of((ROOT / name).read_text(encoding="utf-8"), name)) or name == "README.md"


def test_tables_and_pictures_are_those_of_the_json():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "figures.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_table_shows_the_figures_of_its_run():
    """Read from the JSON here, beside the code that fills the tables."""
    evaluation = json.loads((ROOT / "docs/results/sst2-evaluate.json").read_text())
    bench = json.loads((ROOT / "docs/results/sst2-bench.json").read_text())
    reference = next(row["median_ms"] for row in bench["results"] if row["system"] == "bert-base")
    rows = figures.TABLES["sst2"]().splitlines()[2:]
    assert len(rows) == len(evaluation["speeds"])
    for row, speed in zip(rows, evaluation["speeds"]):
        cells = [cell.strip() for cell in row.split("|")]
        assert f"{speed['accuracy']:.4f}" in cells
        assert f"{speed['mean_depth']:.2f}" in cells
        assert f"{reference / speed['latency_ms']['mean']:.0f} x" in cells


def test_the_generated_pages_have_every_scheme_key_and_public_name():
    generate = load("generate")
    table = generate.scheme_table()
    assert all(f"| `{name}` |" in table for name in SCHEMES)
    keys = generate.keys_page(list_keys())
    assert all(f"| `{key.key}` |" in keys for key in list_keys()) and "`export.coreml_layout`" in keys
    page_text = generate.api_page()
    assert all(f"pocketbert.{name}\n" in page_text for name in pocketbert.__all__ if not name.startswith("__"))


def test_a_changed_figure_is_found():
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    altered = re.sub(r"(bundle, `exact` \| )0\.\d+", r"\g<1>0.9999", text, count=1)
    assert altered != text
    assert figures.filled(altered) == text


def test_the_picture_has_the_score_and_depth_of_every_speed():
    measured = figures.bundle_measurements("sst2")
    for name, svg in figures.pictures.draw(measured).items():
        if name.startswith("speeds"):
            for row in measured.rows():
                assert f"{row.result.accuracy:.3f}" in svg
                assert f"{row.result.mean_depth:.2f} of 6 segments" in svg
