"""AUROC and the correlations equal those of scikit-learn and SciPy."""

import numpy as np
import pytest

from pipeline.data.regression_metrics import auroc, pearson, ranks, regression_metrics, spearman


@pytest.fixture(params=[0, 1, 2], ids=["distinct", "ties", "many-ties"])
def drawn(request):
    """Uncertainties, scores that fall with them, and which answers are right; later cases have more equal values."""
    rng = np.random.default_rng(request.param)
    uncertainty = rng.random(200).round(request.param and 3 - request.param)
    if request.param == 0:
        uncertainty = rng.permutation(np.linspace(0, 1, 200))
    score = np.clip(1 - uncertainty + rng.normal(0, 0.4, 200), 0, 1)
    return uncertainty, score, score > 0.6


def test_auroc_is_the_share_of_correctly_ordered_pairs(drawn):
    uncertainty, _, right = drawn
    pairs = [(a > b) + 0.5 * (a == b) for a in uncertainty[~right] for b in uncertainty[right]]
    assert auroc(uncertainty, right) == pytest.approx(np.mean(pairs))
    metrics = pytest.importorskip("sklearn.metrics")
    assert auroc(uncertainty, right) == pytest.approx(metrics.roc_auc_score(~right, uncertainty))


def test_spearman_equals_scipys(drawn):
    uncertainty, score, _ = drawn
    stats = pytest.importorskip("scipy.stats")
    assert ranks(score) == pytest.approx(stats.rankdata(score))
    assert spearman(uncertainty, score) == pytest.approx(stats.spearmanr(uncertainty, score).statistic)


def test_pearson_equals_scipys(drawn):
    uncertainty, score, _ = drawn
    stats = pytest.importorskip("scipy.stats")
    assert pearson(uncertainty, score) == pytest.approx(stats.pearsonr(uncertainty, score).statistic)
    assert pearson(1e6 + 3 * score, score) == pytest.approx(1)


def test_a_regression_is_measured_by_correlations_and_its_mean_absolute_error(drawn):
    labels, predictions, _ = drawn
    assert regression_metrics(predictions, labels) == {
        "pearson": pearson(predictions, labels),
        "spearman": spearman(predictions, labels),
        "mean_absolute_error": pytest.approx(sum(abs(a - b) for a, b in zip(predictions, labels)) / 200),
    }


def test_the_ends_of_the_scale_are_reached():
    uncertainty = np.array([0.1, 0.2, 0.3, 0.4])
    assert auroc(uncertainty, np.array([1, 1, 0, 0])) == 1.0
    assert auroc(uncertainty, np.array([0, 0, 1, 1])) == 0.0
    assert auroc(np.full(4, 0.5), np.array([0, 1, 0, 1])) == 0.5
    assert spearman(uncertainty, np.array([0.9, 0.5, 0.4, 0.0])) == pytest.approx(-1)


def test_an_undefined_metric_is_none():
    assert auroc(np.array([0.1, 0.9]), np.array([1, 1])) is None
    assert auroc(np.array([0.1, 0.9]), np.array([0, 0])) is None
    assert spearman(np.array([0.1, 0.9]), np.array([1.0, 1.0])) is None
    assert spearman(np.array([0.5, 0.5]), np.array([0.0, 1.0])) is None
    # In floating point three times 0.1 is not 0.3, so a constant's deviations from its mean are not all 0.
    assert pearson(np.full(3, 0.1), np.array([0.0, 1.0, 2.0])) is None
    assert pearson(np.array([1.0]), np.array([2.0])) is None
