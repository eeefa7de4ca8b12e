"""Per-feature deviation and RankMe against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlvicx_jax.evaluation.diagnostics import feature_std, rankme


def test_feature_std_equals_numpy():
    z = np.random.default_rng(0).standard_normal((16, 5)) * [1, 2, 3, 4, 5] + 10
    assert float(jax.jit(feature_std)(z)) == pytest.approx(z.std(axis=0, ddof=1).mean(), rel=1e-5)
    assert float(feature_std(jnp.ones((16, 5)))) == 0
    assert feature_std(jnp.ones((4, 2), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    'b, r, offset, scale',
    [
        (32, 300, 0, 1),
        (2000, 12, 0, 1),
        (32, 300, 3, 1e-4),  # nearly one point
        (32, 60, 1e4, 1),  # far from the origin
        (64, 40, 0, 0.5 ** np.arange(40)),
    ],
)
def test_rankme_equals_float64(b, r, offset, scale):
    z = offset + scale * np.random.default_rng(0).standard_normal((b, r))
    z = z.astype(np.float32)
    sigma = np.linalg.svd(z.astype(np.float64), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert float(jax.jit(rankme)(z)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_rankme_of_collapsed_isotropic_and_few_embeddings():
    rng = np.random.default_rng(0)
    for point in (np.zeros(128), np.ones(128), rng.standard_normal(128)):
        assert float(rankme(jnp.tile(point, (64, 1)))) == pytest.approx(1, abs=1e-3)
    isotropic, few = rng.standard_normal((10_000, 8)), rng.standard_normal((16, 512))
    assert float(rankme(jnp.asarray(isotropic))) == pytest.approx(8, rel=1e-3)
    assert 15 < float(rankme(jnp.asarray(few))) <= 16.01
    assert np.isnan(float(rankme(jnp.full((4, 3), jnp.nan))))
