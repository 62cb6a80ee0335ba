"""The names that the whole project shares: tasks, scores, measures of uncertainty, backends. They stand in recipes and manifests."""

from __future__ import annotations

from typing import Literal

# Classification and regression read a text or a pair of texts, and differ in the label: one of some names, or a number.
Task = Literal["classification", "regression", "qa"]

# The measures of how unsure an exit is. The runner derives patience and change from the answers of successive exits; programs compute the
# others. Change is for regression alone, and its only one.
Uncertainty = Literal["entropy", "max_probability", "margin", "patience", "agreement", "change"]

# The score of one example, as a fraction of 1; a named speed bounds how much of it is lost. "one_minus_nmae" is 1 minus the distance of
# prediction and label as a share of the label range, capped at 1: its mean is 1 minus the normalised mean absolute error.
Metric = Literal["accuracy", "f1", "one_minus_nmae"]

# What runs a program: ExecuTorch with its own kernels, Core ML, or ExecuTorch that hands the whole program to Core ML.
Backend = Literal["executorch", "coreml", "executorch-coreml"]
# Core ML computes the programs of these backends: they have fixed lengths, and run on Apple's systems alone.
APPLE_BACKENDS: tuple[Backend, ...] = ("coreml", "executorch-coreml")
