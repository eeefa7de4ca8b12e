"""Invariance, variance and covariance of two batches of embeddings (VICReg's terms).

Plain mathematics on a whole batch: nothing here knows a device mesh. `step.py` hands over arrays of the
global batch, whose rows lie on many devices, so the statistics are global by construction.
Everything is computed in float32, or wider where the embeddings are, whatever the network's compute type.

Equations are numbered as in MLVICX (arXiv:2403.11504); 'released' is the reading of its code, which
is VICReg's (arXiv:2105.04906).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mlvicx_jax.models.precision import wide

Array = jax.Array


def invariance(z1_BxR: Array, z2_BxR: Array, reduce: str = 'mean') -> Array:
    """Squared distance between the two views' embeddings, averaged over the batch (Eq. 6).

    `reduce` says what happens to the R features: 'mean' is the released reading, the only one under
    which alpha = 25 balances the other terms; 'sum' is the equation as printed, R times larger.
    """
    squared = jnp.square(wide(z1_BxR) - wide(z2_BxR))
    return squared.mean() if reduce == 'mean' else squared.sum(-1).mean()


def centre(z_BxR: Array) -> tuple[Array, Array]:
    """Embeddings minus their mean [B, R], and each feature's variance [R] (with B - 1).

    Both terms below begin with it, in the same words, so that a compiler computes it once: over n
    devices it is two sums that every device waits for.
    """
    z_BxR = wide(z_BxR)
    centred = z_BxR - z_BxR.mean(0)
    return centred, jnp.square(centred).sum(0) / (len(centred) - 1)


def variance(z_BxR: Array, threshold: float = 1.0, eps: float = 1e-4) -> Array:
    """Hinge on each feature's standard deviation, averaged over features (Eq. 7).

    eps stands inside the root, as in VICReg's code; the paper prints it outside, where the gradient
    of a constant feature would be infinite.
    """
    _, variances = centre(z_BxR)
    return jnp.maximum(0.0, threshold - jnp.sqrt(variances + eps)).mean()


def covariance(z_BxR: Array) -> Array:
    """Squared off-diagonal covariances, summed and divided by the number of features (Eq. 8).

    Uses sum_{l!=q} C_lq^2 = |C|_F^2 - sum_j C_jj^2.
    """
    batch, width = z_BxR.shape
    centred, variances = centre(z_BxR)
    return (products_squared(centred) / (batch - 1) ** 2 - jnp.square(variances).sum()) / width


@jax.custom_vjp
def products_squared(z_BxR: Array) -> Array:
    """|Z^T Z|_F^2 = |Z Z^T|_F^2, by the smaller of the two matrices, B x B or R x R.

    The gradient, 4 Z (Z^T Z) = 4 (Z Z^T) Z, is written out because it takes one product where
    differentiation takes two, and, with rows that are divided over n devices, less traffic. There
    the B x B form multiplies B^2 R / n numbers a device and gathers Z once; the R x R form
    multiplies B R^2 / n and sums R x R once. Differentiation would sum a B x R gradient over the
    devices as well. So both arithmetic and traffic say: B x B where B < R.
    """
    return _products(z_BxR)[0]


def _products(z_BxR):
    batch, width = z_BxR.shape
    product = _product('br,cr->bc' if batch < width else 'br,bs->rs', z_BxR, z_BxR)
    return jnp.square(product).sum(), (z_BxR, product)


def _products_gradient(kept, cotangent):
    z_BxR, product = kept
    batch, width = z_BxR.shape
    return (4 * cotangent * _product('bc,cr->br' if batch < width else 'sr,bs->br', product, z_BxR),)


products_squared.defvjp(_products, _products_gradient)
_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class VICReg:
    """L(Z, Z') = alpha inv + beta var + gamma cov, Eq. 3 and 4, with the readings of both sources.

    Attributes:
      alpha, beta, gamma: the weights, 25, 25, 1 in the paper ('adopted from VICReg').
      threshold: target standard deviation of the hinge, 1.
      eps: added to each variance inside the root.
      inv_reduce: 'mean' (released) or 'sum' (paper, literally) over features.
      var_reduce: 'mean' halves var Z + var Z' (released); 'sum' adds them (paper).
    """

    alpha: float = 25.0
    beta: float = 25.0
    gamma: float = 1.0
    threshold: float = 1.0
    eps: float = 1e-4
    inv_reduce: str = 'mean'
    var_reduce: str = 'mean'

    def __post_init__(self):
        for field in ('inv_reduce', 'var_reduce'):
            if getattr(self, field) not in ('mean', 'sum'):
                raise ValueError(f"{field}={getattr(self, field)!r} is neither 'mean' nor 'sum'")

    def __call__(self, z1_BxR: Array, z2_BxR: Array) -> tuple[Array, dict[str, Array]]:
        """Returns the weighted sum and its three unweighted terms."""
        var = variance(z1_BxR, self.threshold, self.eps) + variance(z2_BxR, self.threshold, self.eps)
        terms = {
            'invariance': invariance(z1_BxR, z2_BxR, self.inv_reduce),
            'variance': var / 2 if self.var_reduce == 'mean' else var,
            'covariance': covariance(z1_BxR) + covariance(z2_BxR),
        }
        total = (
            self.alpha * terms['invariance'] + self.beta * terms['variance'] + self.gamma * terms['covariance']
        )
        return total, terms
