"""The scores of a set of examples, as JSON documents carry them."""

from __future__ import annotations

from pipeline.support.document import Document


class Scores(Document):
    """Each task has its own of these, named in `TaskDefinition.metrics`; the others are absent.

    Attributes:
        accuracy: share of right labels.
        exact_match, f1: SQuAD's metrics, fractions of 1.
        pearson, spearman: correlations; absent where all predictions or all labels are the same.
        mean_absolute_error: in the data's unit.
    """

    accuracy: float | None = None
    exact_match: float | None = None
    f1: float | None = None
    pearson: float | None = None
    spearman: float | None = None
    mean_absolute_error: float | None = None
