"""Imports of libraries that only some inputs need."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pipeline.support.errors import UserError


def import_library(name: str, source: str | Path) -> Any:
    """Imports a module that is needed to read `source`.

    Raises:
        UserError: the library is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise UserError(f"reading this needs {package}; run: pip install {package}", file=source) from None
