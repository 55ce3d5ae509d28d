"""The example that selects features: scikit-learn's weights, and its zeros."""

from __future__ import annotations

import numpy as np
import pytest
import select_features as example
import typer
from sklearn.linear_model import Lasso
from typer import testing


@pytest.mark.parametrize("penalty", [0.02, 0.1, 0.4])
def test_weights_are_those_of_the_lasso(penalty):
    """Lasso minimises the same sum, by coordinate descent."""
    data = example.load_data()
    [weights] = example.weights_of(data, (penalty,), example.STEPS)
    lasso = Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=100_000)
    expected = lasso.fit(data.features, data.targets).coef_
    np.testing.assert_allclose(weights, expected, atol=1e-9)
    assert np.array_equal(weights == 0, expected == 0)
    assert 0 < np.count_nonzero(weights) < weights.size


def test_all_penalties_at_once_are_what_each_is_alone():
    data = example.load_data()
    together = example.weights_of(data, (0.1, 0.4), 50)
    for penalty, weights in zip((0.1, 0.4), together, strict=True):
        [alone] = example.weights_of(data, (penalty,), 50)
        np.testing.assert_allclose(weights, alone, atol=1e-12)


def test_script(tmp_path):
    app = typer.Typer()
    app.command()(example.main)
    result = testing.CliRunner().invoke(app, ["--steps", "100", "--plot", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "bmi" in result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "sparse-weights-light.svg",
        "sparse-weights-dark.svg",
    }
