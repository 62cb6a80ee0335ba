"""Answers the lines of a file with a classifier's bundle: python examples/predict.py BUNDLE FILE"""

from __future__ import annotations

import sys
from pathlib import Path

import pocketbert


def main(bundle: str, file: str) -> None:
    runner = pocketbert.load(bundle)
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        if line.strip():
            result = runner.classify(line, speed="exact")
            print(f"{result.label}\t{result.score:.3f}\t{result.depth} of {runner.manifest.segments}\t{line}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
