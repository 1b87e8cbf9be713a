"""The minimiser against independent ones: closed forms, linear programs and direct search."""

import numpy as np
import pytest
import scipy.optimize

from ssljax.scaling.fitting import huber, minimise

X = np.linspace(1.0, 3.0, 40)
FREE = np.array([-np.inf, -np.inf])


def line(u):
    """Values a + b x and their derivatives."""
    return u[:, :1] + u[:, 1:] * X, np.broadcast_to(np.stack([np.ones_like(X), X], -1), (len(u), 40, 2))


def curve(u):
    """Values exp(a) x^b and their derivatives."""
    values = np.exp(u[:, :1]) * X ** u[:, 1:]
    return values, np.stack([values, values * np.log(X)], -1)


def noisy(seed=0):
    rng = np.random.default_rng(seed)
    return 2.0 - 0.7 * X + 0.1 * rng.standard_t(2, 40)


def by_definition(residual, delta):
    """Huber's loss, from its definition by cases."""
    return 0.5 * residual**2 if abs(residual) <= delta else delta * abs(residual) - 0.5 * delta**2


def test_huber_equals_its_definition():
    values = np.array([-3.0, -0.5, -0.1, 0.0, 0.1, 0.2, 7.0])
    np.testing.assert_allclose(huber(values, 0.2), [by_definition(v, 0.2) for v in values], rtol=1e-15)
    np.testing.assert_allclose(huber(values, None), values**2 / 2)


def test_least_squares_equal_the_closed_form_with_weights():
    y, weights = noisy(), np.random.default_rng(1).integers(0, 4, (5, 40)).astype(float)
    found = minimise(line, y, np.zeros((5, 2)), weights, FREE, -FREE, None)
    for w, u in zip(weights, found.coordinates):
        design = np.stack([np.ones_like(X), X], -1)
        expected = np.linalg.solve(design.T @ (w[:, None] * design), design.T @ (w * y))
        np.testing.assert_allclose(u, expected, rtol=1e-9)
    assert found.converged.all()


@pytest.mark.parametrize("delta", [1e-4, 1e-2, 0.1])
def test_huber_fits_equal_a_direct_search(delta):
    y = np.exp(0.3) * X**-0.4 * np.exp(noisy(3) * 0.05)
    rng = np.random.default_rng(2)
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=3).astype(float)
    found = minimise(curve, y, np.zeros((3, 2)), weights, FREE, -FREE, delta)
    for w, u, loss in zip(weights, found.coordinates, found.loss):
        total = lambda v, w=w: float((w * huber(y - curve(np.asarray(v)[None])[0][0], delta)).sum())  # noqa: E731
        options = {"xatol": 1e-10, "fatol": 1e-16, "maxiter": 4000}
        expected = scipy.optimize.minimize(total, u + 0.01, method="Nelder-Mead", options=options)
        assert loss == pytest.approx(total(u), rel=1e-12)
        assert loss <= expected.fun * (1 + 1e-9)


def test_a_tiny_delta_gives_the_median_regression_of_a_linear_program():
    y = noisy(5)
    found = minimise(line, y, np.zeros((1, 2)), np.ones((1, 40)), FREE, -FREE, 1e-7)
    # min sum(p + m) subject to a + b x + p - m = y and p, m >= 0
    cost = np.concatenate([np.zeros(2), np.ones(80)])
    equal = np.hstack([np.ones((40, 1)), X[:, None], np.eye(40), -np.eye(40)])
    exact = scipy.optimize.linprog(cost, A_eq=equal, b_eq=y, bounds=[(None, None)] * 2 + [(0, None)] * 80)
    absolute = np.abs(y - line(found.coordinates)[0][0]).sum()
    assert absolute == pytest.approx(exact.fun, rel=1e-6)


def test_bounds_hold_and_the_minimum_on_a_bound_is_found():
    y = noisy(7)
    upper = np.array([np.inf, -0.9])  # the free slope is about -0.7
    found = minimise(line, y, np.array([[0.0, -5.0]]), np.ones((1, 40)), FREE, upper, None)
    assert found.coordinates[0, 1] == -0.9
    assert found.coordinates[0, 0] == pytest.approx((y + 0.9 * X).mean(), rel=1e-10)


def test_each_problem_is_independent_of_its_neighbours(monkeypatch):
    y = np.stack([noisy(s) for s in range(6)])
    together = minimise(line, y, np.zeros((6, 2)), np.ones((1, 40)), FREE, -FREE, 0.05)
    monkeypatch.setattr("ssljax.scaling.fitting.BLOCK", 1)
    apart = minimise(line, y, np.zeros((6, 2)), np.ones((1, 40)), FREE, -FREE, 0.05)
    np.testing.assert_allclose(together.coordinates, apart.coordinates, rtol=1e-12)


def test_starts_without_a_finite_loss_stay_and_do_not_harm_others():
    start = np.array([[0.0, 0.0], [np.nan, 0.0]])
    found = minimise(line, noisy(), start, np.ones((1, 40)), FREE, -FREE, 0.1)
    alone = minimise(line, noisy(), start[:1], np.ones((1, 40)), FREE, -FREE, 0.1)
    np.testing.assert_allclose(found.coordinates[0], alone.coordinates[0], rtol=1e-12)
    assert np.isnan(found.loss[1])
