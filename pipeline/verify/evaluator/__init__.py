"""Evaluates saved Core ML programs in coremltools' own operator semantics."""
