"""Builds the wheel. Everything else about the package is in pyproject.toml.

In the checkout, and in an editable install of it, the code is in the top-level packages `pipeline` and `quantize`.
Those names are too common to install: a user's own `pipeline` would hide ours, or ours would hide theirs. So the wheel
has one top-level package. Its `pocketbert._internal` holds the two others, and their imports are rewritten.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

MOVED = ("pipeline", "quantize")
NEW_PARENT = "pocketbert._internal"
ROOT = Path(__file__).resolve().parent
# Calls whose first argument is a module's name.
IMPORTING_CALLS = ("import_module", "import_quietly", "find_spec", "run_module", "files")


class BuildWheel(bdist_wheel):
    """Tells setuptools, for a wheel only, that the moved packages are below `NEW_PARENT`."""

    def finalize_options(self) -> None:
        super().finalize_options()
        distribution = self.distribution
        # An editable install asks this command for the tags of its file name, and uses the checkout as it is.
        if "editable_wheel" in distribution.commands:
            return
        if distribution.package_dir is None or NEW_PARENT not in " ".join(distribution.package_dir):
            distribution.package_dir = {
                **(distribution.package_dir or {}),
                **{f"{NEW_PARENT}.{name}": name for name in MOVED},
            }
            distribution.packages = [new_name(package) for package in distribution.packages]
            distribution.package_data = {
                new_name(package): files for package, files in distribution.package_data.items()
            }


class BuildPython(build_py):
    """Rewrites the imports of the files that it copies for a wheel. An editable install copies none."""

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        target, copied = super().build_module(module, module_file, package)
        if NEW_PARENT in " ".join(self.distribution.package_dir or {}):
            path = Path(target)
            path.write_text(rewrite_imports(path.read_text(encoding="utf-8"), module_file), encoding="utf-8")
        return target, copied


def new_name(module: str) -> str:
    """Returns the name that a module has in the wheel."""
    return f"{NEW_PARENT}.{module}" if module.split(".")[0] in MOVED else module


def rewrite_imports(source: str, file: str) -> str:
    """Returns a module's source with the names that the project's modules have in the wheel.

    Raises:
        SystemExit: a name cannot be rewritten, such as `import pipeline`, which binds the top-level package.
    """
    if not any(name in source for name in MOVED):
        return source
    lines = source.encode("utf-8").splitlines(keepends=True)
    # From the last to the first, so that the places before stay valid.
    for line, column, name in sorted(set(module_names(ast.parse(source), file)), reverse=True):
        # The name is the first one there: after `from`, after a quote, or at once.
        head, tail = lines[line - 1][:column], lines[line - 1][column:].decode("utf-8")
        changed = re.sub(rf"^((?:from\s+)?[\"']?){re.escape(name)}\b", rf"\g<1>{new_name(name)}", tail, count=1)
        if changed == tail:
            raise SystemExit(f"{file}:{line}: cannot rewrite {name!r} for the wheel; write its import on one line")
        lines[line - 1] = head + changed.encode("utf-8")
    rewritten = b"".join(lines).decode("utf-8")
    if left := list(module_names(ast.parse(rewritten), file)):
        raise SystemExit(f"{file}:{left[0][0]}: {left[0][2]!r} is left; setup.py must learn to rewrite it")
    return rewritten


def module_names(tree: ast.AST, file: str) -> Iterator[tuple[int, int, str]]:
    """Yields the line, the column in bytes and the name of each use of a moved module.

    Such a use is an import, the argument of a call that imports, what follows "-m", or a text that is nothing but the
    name of a module of `pipeline`. Texts such as "quantize.embeddings" can also be keys of a recipe, so they stay.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and is_moved(node.module):
            yield node.lineno, node.col_offset, node.module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if is_moved(alias.name):
                    if alias.asname is None:
                        raise SystemExit(
                            f"{file}:{node.lineno}: `import {alias.name}` cannot be rewritten for the wheel; write "
                            "`from ... import ...`"
                        )
                    yield alias.lineno, alias.col_offset, alias.name
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in IMPORTING_CALLS and node.args:
                yield from text_name(node.args[0])
        elif isinstance(node, (ast.List, ast.Tuple)):
            for before, element in zip(node.elts, node.elts[1:]):
                if isinstance(before, ast.Constant) and before.value == "-m":
                    yield from text_name(element)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(f"{MOVED[0]}."):
            if is_module(node.value):
                yield from text_name(node)


def text_name(node: ast.AST) -> Iterator[tuple[int, int, str]]:
    """Yields the place and the value of a text that names a moved module."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and is_moved(node.value):
        yield node.lineno, node.col_offset, node.value


def is_moved(module: str) -> bool:
    """Returns whether a module's name begins with a moved package."""
    return module.split(".")[0] in MOVED


def is_module(name: str) -> bool:
    """Returns whether the checkout has a module of that name."""
    place = ROOT / name.replace(".", "/")
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


if __name__ == "__main__":
    setup(cmdclass={"bdist_wheel": BuildWheel, "build_py": BuildPython})
