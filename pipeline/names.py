"""The names that recipes and manifests use for tasks, scores, measures of uncertainty and backends."""

from __future__ import annotations

from typing import Literal

# Classification and regression read a text or a pair of texts. The label is one of some classes, or a number.
Task = Literal["classification", "regression", "qa"]

# How uncertain an exit is. The runner computes patience and change from the answers of successive exits; programs
# compute the other measures. Regression has no measure but change, and no other task has it.
Uncertainty = Literal["entropy", "max_probability", "margin", "patience", "agreement", "change"]

# The score of one example, a share of 1. A named speed bounds how much of it may be lost. "one_minus_nmae" is 1 minus
# the distance between prediction and label as a share of the label range, at most 1. Its mean is 1 minus the normalised
# mean absolute error.
Metric = Literal["accuracy", "f1", "one_minus_nmae"]

# What runs a program: ExecuTorch with its own kernels, Core ML, or ExecuTorch that delegates the program to Core ML.
Backend = Literal["executorch", "coreml", "executorch-coreml"]
# Core ML computes the programs of these backends. They have fixed lengths and run on Apple's systems only.
APPLE_BACKENDS: tuple[Backend, ...] = ("coreml", "executorch-coreml")
