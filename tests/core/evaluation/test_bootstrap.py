import numpy as np
from scipy.stats import bootstrap as scipy_bootstrap

from pixrec_core.evaluation.bootstrap import RESAMPLES, interval, resampled_means


def test_intervals_agree_with_scipy():
    values = np.random.default_rng(3).random((400, 2)) ** 3
    low, high = interval(resampled_means(values))
    for column in range(2):
        expected = scipy_bootstrap(
            (values[:, column],), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(4)
        ).confidence_interval
        assert np.allclose([low[column], high[column]], expected, atol=2e-3)


def test_all_columns_use_the_same_resamples():
    values = np.random.default_rng(5).random((50, 1))
    means = resampled_means(np.hstack([values, values + 0.25, 2 * values]))
    assert means.shape == (RESAMPLES, 3)
    assert np.allclose(means[:, 1] - means[:, 0], 0.25)
    assert np.allclose(means[:, 2], 2 * means[:, 0])


def test_a_second_run_gives_equal_means():
    values = np.random.default_rng(6).random((20, 1))
    assert np.array_equal(resampled_means(values), resampled_means(values))


def test_equal_users_give_an_interval_of_width_zero():
    low, high = interval(resampled_means(np.ones((7, 1))))
    assert np.allclose([low, high], 1)
