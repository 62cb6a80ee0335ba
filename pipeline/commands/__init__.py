"""The commands of `pocketbert`, grouped by what they are given.

A command reads its options, calls the function that does the work, and prints the result. Everything slow is imported
inside the commands, so that `--help` answers at once.
"""
