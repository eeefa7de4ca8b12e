"""The reference levels against NumPy float64, search, construction and simulation."""

import numpy as np
import pytest
from scipy.optimize import minimize

from mlvicx_jax.errors import UserError
from mlvicx_jax.methods.shared.loss_bounds import reference_levels


def terms(z, eps):
    """Variance and covariance terms of one view, with their gradients (equations 7 and 8)."""
    b, r = z.shape
    centred = z - z.mean(axis=0)
    c = centred.T @ centred / (b - 1)
    std = np.sqrt(np.diag(c) + eps)
    off = c - np.diag(np.diag(c))
    d_var = -np.where(std < 1, 1 / std, 0) * centred / (b - 1) / r
    return np.maximum(0, 1 - std).mean(), (off**2).sum() / r, d_var, 4 * centred @ off / (b - 1) / r


def loss(z, z2, alpha, beta, gamma, inv_reduce, var_reduce, eps):
    inv = ((z - z2) ** 2).sum(axis=1).mean() / (z.shape[1] if inv_reduce == 'mean' else 1)
    (var, cov, *_), (var2, cov2, *_) = terms(z, eps), terms(z2, eps)
    views = 2 if var_reduce == 'mean' else 1
    return alpha * inv + beta * (var + var2) / views + gamma * (cov + cov2)


def tight_frame(b, r, v):
    """b x r batch with mean 0, variance v in each feature and b - 1 equal eigenvalues (b odd)."""
    k = b - 1
    angle = 2 * np.pi * np.outer(np.arange(1, k // 2 + 1), np.arange(r)) / r
    frame = np.concatenate([np.cos(angle), np.sin(angle)]) * np.sqrt(2 / k)  # unit columns
    off_mean = np.linalg.svd(np.eye(b) - 1 / b)[0][:, :k]  # orthonormal, each column sums to 0
    return np.sqrt(v * (b - 1)) * off_mean @ frame


SETTINGS = [
    (5, 24, 25, 25, 1, 'mean', 'mean', 1e-4),
    (5, 24, 25, 25, 1, 'sum', 'sum', 1e-4),
    (7, 100, 10, 40, 2, 'mean', 'mean', 0.0),
    (9, 16, 25, 25, 1, 'mean', 'mean', 1e-4),  # the optimum is at the hinge: variance 1
]


@pytest.mark.parametrize('b, r, alpha, beta, gamma, inv, var, eps', SETTINGS)
def test_floor_is_attained_by_a_tight_frame(b, r, alpha, beta, gamma, inv, var, eps):
    floor = reference_levels(b, r, alpha, beta, gamma, inv, var, eps)['floor']
    batches = (tight_frame(b, r, v) for v in np.linspace(0.01, 1 - eps, 1000))
    best = min(loss(z, z, alpha, beta, gamma, inv, var, eps) for z in batches)
    assert floor - 1e-9 < best < floor + 1e-3


@pytest.mark.parametrize('b, r, alpha, beta, gamma, inv, var, eps', SETTINGS)
def test_no_batch_gets_below_the_floor(b, r, alpha, beta, gamma, inv, var, eps):
    # Unequal views only add invariance to two one-view terms, so descent over one view suffices.
    floor = reference_levels(b, r, alpha, beta, gamma, inv, var, eps)['floor']
    beta_1 = beta / 2 if var == 'mean' else beta

    def one_view(flat):
        v, c, d_v, d_c = terms(flat.reshape(b, r), eps)
        return 2 * (beta_1 * v + gamma * c), 2 * (beta_1 * d_v + gamma * d_c).ravel()

    rng = np.random.default_rng(0)
    found = []
    for scale in (0.1, 0.5, 3):
        # Features of very different sizes too: equal variances are what the proof claims is best.
        start = scale * rng.standard_normal((b, r)) * np.exp(rng.standard_normal(r))
        end = minimize(
            one_view, start.ravel(), jac=True, method='L-BFGS-B', options={'maxiter': 300}
        ).x.reshape(b, r)
        found.append(loss(end, end, alpha, beta, gamma, inv, var, eps))
        assert loss(end, end + 0.1 * start, alpha, beta, gamma, inv, var, eps) > floor
    assert floor - 1e-6 < min(found) < floor * 1.02 + 1e-3


def test_floor_at_the_project_s_sizes():
    levels = {r: reference_levels(64, r, 25, 25, 1)['floor'] for r in (32, 63, 2048, 4096)}
    assert levels[32] == levels[63] == 0
    assert levels[2048] == pytest.approx(16.3, abs=0.05)
    assert levels[4096] == pytest.approx(18.1, abs=0.1)


def test_floor_is_nan_where_the_proof_does_not_hold():
    assert np.isnan(reference_levels(8, 64, 25, 15, 1)['floor'])
    assert np.isfinite(reference_levels(8, 64, 25, 16, 1)['floor'])
    assert np.isfinite(reference_levels(8, 64, 25, 8, 1, var_reduce='sum')['floor'])


def test_share_nothing_by_hand():
    # 50 s^2 + 25 (1 - s) is least at s = 1/4; with both hinges counted, 50 s^2 + 50 (1 - s) at 1/2.
    assert reference_levels(64, 9, 25, 25, 1, eps=0)['share_nothing'] == pytest.approx(21.875)
    twice = reference_levels(64, 9, 25, 25, 1, var_reduce='sum', eps=0)['share_nothing']
    assert twice == pytest.approx(37.5)
    # Summed invariance drives the variance to 0, where each hinge is 1 - sqrt(eps).
    summed = reference_levels(64, 4096, 25, 25, 1, inv_reduce='sum')['share_nothing']
    assert summed == pytest.approx(25 * 0.99, abs=1e-9)


@pytest.mark.parametrize('inv', ['mean', 'sum'])
@pytest.mark.parametrize('var', ['mean', 'sum'])
def test_share_nothing_by_simulation(inv, var):
    b, r, eps = 50_000, 3, 1e-4
    rng = np.random.default_rng(0)
    z, z2 = rng.standard_normal((2, b, r))
    by_std = [loss(s * z, s * z2, 25, 25, 1, inv, var, eps) for s in np.arange(0.02, 1, 0.04)]
    level = reference_levels(b, r, 25, 25, 1, inv, var, eps)['share_nothing']
    assert min(by_std) == pytest.approx(level, rel=3e-3)


def test_batch_of_one_is_refused():
    with pytest.raises(UserError, match='batch_size: found 1'):
        reference_levels(1, 64, 25, 25, 1)
