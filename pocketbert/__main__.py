"""The command `pocketbert`, also as `python -m pocketbert`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
