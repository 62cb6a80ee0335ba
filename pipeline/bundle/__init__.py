"""The bundle: its manifest, its conformance vectors, the exit rule, and opening one with every check."""
