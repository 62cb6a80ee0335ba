"""The house in order: what each folder may import, how long a file may be, and where a task's name may be compared.

CONTRIBUTING.md shows the house. A failure here names the file and the rule.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
# A folder or file imports only from those before it, and from itself.
ORDER = (
    "pipeline/__init__.py",
    "pipeline/names.py",
    "pipeline/schemes.py",
    "pipeline/support",
    "pipeline/data",
    "pipeline/tasks",
    "pipeline/recipe",
    "pipeline/bundle",
    "pipeline/model",
    "pipeline/distill",
    "pipeline/exits",
    "quantize",
    "pipeline/export",
    "pipeline/runtime",
    "pipeline/verify",
    "pipeline/bench",
    "pipeline/report",
    "pipeline/run",
    "pipeline/doctor.py",
    "pipeline/commands",
    "pipeline/cli.py",
    "quantize/__main__.py",
    "pocketbert",
)
# What a phone's runtime in another language copies knows nothing of training, recipes and export.
RUNTIME_MAY_IMPORT = (
    "pipeline/__init__.py",
    "pipeline/names.py",
    "pipeline/support",
    "pipeline/data",
    "pipeline/tasks",
)
FILES = sorted(path for folder in ("pipeline", "quantize", "pocketbert") for path in (ROOT / folder).rglob("*.py"))
NAMES_OF = {"task": ("classification", "regression", "qa")}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(name: str) -> str:
    """Returns the entry of ORDER that a file belongs to; the longest one that fits."""
    fitting = [room for room in ORDER if name == room or name.startswith(f"{room}/")]
    assert fitting, f"{name} has no place in the house; add its folder to ORDER, and to CONTRIBUTING.md"
    return max(fitting, key=len)


def imported_files(path: Path) -> set[str]:
    """Returns the project's files that a file imports anywhere, within functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{relative(path)}:{node.lineno} has a relative import; write the whole name")
        else:
            continue
        for module in modules:
            if module.split(".")[0] in ("pipeline", "quantize", "pocketbert"):
                place = module.replace(".", "/")
                found |= {name for name in (f"{place}.py", f"{place}/__init__.py") if (ROOT / name).is_file()}
    return found


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_imports_only_what_stands_before_it(path):
    own = ORDER.index(room_of(relative(path)))
    later = sorted(name for name in imported_files(path) if ORDER.index(room_of(name)) > own)
    assert not later, f"{relative(path)} imports {', '.join(later)}, which stand after it in the house"


@pytest.mark.parametrize("folder", ["pipeline/runtime", "pipeline/bundle"])
def test_the_runtime_knows_nothing_of_training(folder):
    allowed = (*RUNTIME_MAY_IMPORT, "pipeline/bundle", "pipeline/runtime")
    for path in sorted((ROOT / folder).rglob("*.py")):
        others = {name for name in imported_files(path) if not any(name.startswith(place) for place in allowed)}
        assert not others, f"{relative(path)} imports {', '.join(sorted(others))}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_is_read_in_a_sitting(path):
    if "pipeline/data/demo/" in relative(path):  # sentences, one a line
        return
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{relative(path)} has {lines} lines, at most {MAX_LINES} are allowed"


def test_no_file_imports_itself_by_way_of_others():
    """Files that import each other in a ring can only be understood together."""
    edges = {relative(path): imported_files(path) - {relative(path)} for path in FILES}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a ring of imports: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in done:
            # A package's __init__ that gathers its own files is no ring by itself.
            for other in sorted(edges.get(name, ())):
                if not (other.endswith("__init__.py") and name.startswith(other.removesuffix("__init__.py"))):
                    visit(other, (*way, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_task_is_compared_by_no_name(path):
    """A task's name stands in its own file and in pipeline/names.py; everything else asks the task's definition."""
    name = relative(path)
    if name.startswith(("pipeline/tasks/", "pipeline/data/demo/")) or name == "pipeline/names.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            constants = [side.value for side in (node.left, *node.comparators) if isinstance(side, ast.Constant)]
            wrong = [value for value in constants if value in NAMES_OF["task"]]
            assert not wrong, f"{name}:{node.lineno} compares a task with {wrong[0]!r}; ask get_task(...) instead"
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            assert not set(NAMES_OF["task"]) <= keys, (
                f"{name}:{node.lineno} keeps a table of tasks; put it in the tasks"
            )


def test_tests_mirror_the_folders():
    """A test file lies in the folder of what it tests; files of tests/ itself test the project as a whole."""
    folders = {relative(path.parent).removeprefix("pipeline/") for path in FILES} | {"quantize", "conformance"}
    for path in (ROOT / "tests").rglob("test_*.py"):
        place = path.parent.relative_to(ROOT / "tests").as_posix()
        assert place == "." or place in folders, f"{relative(path)} lies in no folder of the house"


def test_contributing_shows_the_house():
    shown = re.findall(r"^\| `([\w/.]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    rooms = [room for room in ORDER if not room.endswith("__init__.py")]
    assert [name.rstrip("/") for name in shown[: len(rooms)]] == rooms
