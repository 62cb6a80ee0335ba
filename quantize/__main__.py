"""Runs `pocketbert quantize TARGET ...` as `python -m quantize TARGET ...`."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "quantize")
    main()
