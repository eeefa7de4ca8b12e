"""Two levels of VICReg's loss that a curve is read against: its floor, and having learned nothing."""

from typing import Literal

import numpy as np
from scipy.optimize import minimize_scalar

from mlvicx_jax.errors import UserError

Reduce = Literal['mean', 'sum']


def reference_levels(
    batch_size: int,
    width: int,
    alpha: float,
    beta: float,
    gamma: float,
    inv_reduce: Reduce = 'mean',
    var_reduce: Reduce = 'mean',
    eps: float = 1e-4,
) -> dict[str, float]:
    """Two levels of one head's loss alpha inv + beta var + gamma cov that a curve is read against.

    `floor` is the least possible value for any two batches of b x r embeddings. Why there is
    one: centred, a batch has rank <= k = b - 1, so for r > k its r features can not all have
    variance 1 and be uncorrelated. Proof, for one view: shrinking a feature of variance above
    1 - eps to that value adds nothing to either term, so let all v_j <= 1 - eps. A positive
    semi-definite C of trace sum(v) and rank <= k has |C|_F^2 >= sum(v)^2 / k, with equality for
    k equal eigenvalues, so the loss is at least gamma sum(v)^2 / (r k) plus the mean of h(v_j) =
    beta_1 (1 - sqrt(v_j + eps)) - gamma v_j^2, beta_1 being beta's share of one view. h is convex
    on [0, 1 - eps] if beta_1 >= 8 gamma, so by Jensen equal variances are best: what remains,
    beta_1 (1 - sqrt(v + eps)) + gamma v^2 (r / k - 1), is minimised over v; twice that is the
    floor, as inv >= 0 is 0 for equal views. Equal-norm tight frames attain it.

    `share_nothing` is where training stands that has learned nothing of what two views share:
    independent views of common per-feature variance v have inv = 2 v (times r when summed),
    against which the variance term pulls; the least over v of that sum. 21.875 at 25, 25, 1,
    'mean', 'mean', eps = 0, with standard deviation 0.25. Covariance is left out: two views can
    each have none when b > r, and where b < r rank adds little at so small a v (0.25 at
    64 x 2048).

    Args:
        batch_size: b, of the global batch.
        width: r, of this head's embedding.
        alpha, beta, gamma: weights of invariance, variance and covariance (equation 3).
        inv_reduce: over the r features.
        var_reduce: over the two views; covariance is always their sum.
        eps: inside the square root of the variance term, and used here as given.

    Returns:
        {'floor', 'share_nothing'}; floor is NaN where beta_1 < 8 gamma, which the proof does
        not cover.

    Raises:
        UserError: batch_size is below 2.
    """
    if batch_size < 2:
        raise UserError(
            f'batch_size: found {batch_size}; expected 2 or more, as variances divide '
            'by batch_size - 1: raise config.batch_size'
        )
    beta_1 = beta * {'mean': 0.5, 'sum': 1.0}[var_reduce]
    features = {'mean': 1, 'sum': width}[inv_reduce]
    excess = max(0.0, width / (batch_size - 1) - 1)

    def floor(v):
        return 2 * (beta_1 * (1 - np.sqrt(v + eps)) + gamma * excess * v**2)

    def share_nothing(v):
        return 2 * (alpha * features * v + beta_1 * (1 - np.sqrt(v + eps)))

    return {
        'floor': _least(floor, 1 - eps) if beta_1 >= 8 * gamma else float('nan'),
        'share_nothing': _least(share_nothing, 1 - eps),
    }


def _least(f, upper):
    """Least value of a convex f on [0, upper], ends included (the bounded search stops short)."""
    inside = minimize_scalar(f, bounds=(0, upper), method='bounded', options={'xatol': 1e-10})
    return float(min(inside.fun, f(0.0), f(upper)))
