"""AUROC and Spearman's correlation are scikit-learn's and SciPy's."""

import numpy as np
import pytest

from pipeline.exits.ranking import auroc, ranks, spearman


@pytest.fixture(params=[0, 1, 2], ids=["distinct", "ties", "many-ties"])
def drawn(request):
    """Uncertainties, scores that fall with them, and which are right; with ever more equal values."""
    chance = np.random.default_rng(request.param)
    uncertainty = chance.random(200).round(request.param and 3 - request.param)
    if request.param == 0:
        uncertainty = chance.permutation(np.linspace(0, 1, 200))
    score = np.clip(1 - uncertainty + chance.normal(0, 0.4, 200), 0, 1)
    return uncertainty, score, score > 0.6


def test_auroc_is_the_share_of_pairs_in_order(drawn):
    uncertainty, _, right = drawn
    pairs = [(a > b) + 0.5 * (a == b) for a in uncertainty[~right] for b in uncertainty[right]]
    assert auroc(uncertainty, right) == pytest.approx(np.mean(pairs))
    metrics = pytest.importorskip("sklearn.metrics")
    assert auroc(uncertainty, right) == pytest.approx(metrics.roc_auc_score(~right, uncertainty))


def test_spearman_is_scipys(drawn):
    uncertainty, score, _ = drawn
    stats = pytest.importorskip("scipy.stats")
    assert ranks(score) == pytest.approx(stats.rankdata(score))
    assert spearman(uncertainty, score) == pytest.approx(stats.spearmanr(uncertainty, score).statistic)


def test_both_ends_of_the_scale():
    uncertainty = np.array([0.1, 0.2, 0.3, 0.4])
    assert auroc(uncertainty, np.array([1, 1, 0, 0])) == 1.0
    assert auroc(uncertainty, np.array([0, 0, 1, 1])) == 0.0
    assert auroc(np.full(4, 0.5), np.array([0, 1, 0, 1])) == 0.5
    assert spearman(uncertainty, np.array([0.9, 0.5, 0.4, 0.0])) == pytest.approx(-1)


def test_what_nothing_can_be_said_of_is_none():
    assert auroc(np.array([0.1, 0.9]), np.array([1, 1])) is None
    assert auroc(np.array([0.1, 0.9]), np.array([0, 0])) is None
    assert spearman(np.array([0.1, 0.9]), np.array([1.0, 1.0])) is None
    assert spearman(np.array([0.5, 0.5]), np.array([0.0, 1.0])) is None
