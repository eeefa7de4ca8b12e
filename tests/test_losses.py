"""The loss terms against a float64 transcription, and the Gram form against the R x R form."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlvicx_jax.methods import mlvicx
from mlvicx_jax.methods.shared import vicreg_loss as losses

SHAPES = {'batch < width': (12, 40), 'batch > width': (40, 12), 'equal': (16, 16)}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def pair(request):
    """Two views' embeddings: related, correlated over features, some features spread beyond 1."""
    rng = np.random.default_rng(0)
    b, r = request.param
    z = rng.normal(size=(b, r)) @ rng.normal(size=(r, r)) / r**0.5 + rng.normal(size=r)
    z *= np.linspace(0.01, 2, r)
    return z.astype(np.float32), (z + 0.3 * rng.normal(size=(b, r))).astype(np.float32)


def np_terms(z1, z2, inv_reduce, var_reduce):
    """Equations 6 to 8 by loops over examples and features."""
    z1, z2 = np.float64(z1), np.float64(z2)
    b, r = z1.shape
    inv = sum(np.sum((z1[i] - z2[i]) ** 2) for i in range(b)) / b
    var = cov = 0
    for z in (z1, z2):
        mean = sum(z) / b
        c = sum(np.outer(row - mean, row - mean) for row in z) / (b - 1)
        var += sum(max(0, 1 - np.sqrt(c[j, j] + 1e-4)) for j in range(r)) / r
        cov += sum(c[l, q] ** 2 for l in range(r) for q in range(r) if l != q) / r
    return {
        'invariance': inv / r if inv_reduce == 'mean' else inv,
        'variance': var / 2 if var_reduce == 'mean' else var,
        'covariance': cov,
    }


READINGS = list(itertools.product(['mean', 'sum'], repeat=2))


@pytest.mark.parametrize('inv_reduce,var_reduce', READINGS)
def test_terms_and_total_follow_the_equations(pair, inv_reduce, var_reduce):
    expected = np_terms(*pair, inv_reduce, var_reduce)
    criterion = losses.VICReg(20.0, 30.0, 2.0, inv_reduce=inv_reduce, var_reduce=var_reduce)
    total, terms = criterion(*pair)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert value > 0.01  # no term is compared at a point where it vanishes
        np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)
    weighted = 20 * expected['invariance'] + 30 * expected['variance'] + 2 * expected['covariance']
    np.testing.assert_allclose(total, weighted, rtol=1e-5)


def test_mlvicx_adds_its_heads_by_their_weights(pair):
    method = mlvicx.Method(encoder=None, recipes={}, image_size=8, multi_level_weight=0.5)
    z1, z2 = pair
    total, terms = method.loss(
        {'global_1': z1, 'global_2': z2, 'multi_level_1': z2[::-1], 'multi_level_2': z1}, {}
    )
    of_global, of_levels = method.criterion(z1, z2)[0], method.criterion(z2[::-1], z1)[0]
    assert abs(of_global - of_levels) > 1
    np.testing.assert_allclose(total, of_global + 0.5 * of_levels, rtol=1e-6)
    np.testing.assert_allclose(terms['multi_level/loss'], of_levels, rtol=1e-6)


def test_gram_form_is_the_covariance_form_with_its_gradient(pair):
    def direct(z):
        centred = z - z.mean(0)
        c = jnp.matmul(centred.T, centred, precision='highest') / (len(z) - 1)
        return jnp.square(c * (1 - jnp.eye(len(c)))).sum() / z.shape[1]

    for z in map(jnp.asarray, pair):
        (value, gradient), (value_direct, gradient_direct) = (
            jax.value_and_grad(f)(z) for f in (losses.covariance, direct)
        )
        np.testing.assert_allclose(value, value_direct, rtol=1e-5)
        scale = np.abs(gradient_direct).max()
        np.testing.assert_allclose(gradient / scale, gradient_direct / scale, atol=1e-5)


def test_covariance_never_forms_the_larger_square():
    program = str([jax.make_jaxpr(jax.grad(losses.covariance))(jnp.zeros(shape)) for shape in SHAPES.values()])
    shapes = {tuple(map(int, dims.split(','))) for dims in re.findall(r'f32\[(\d+,\d+)\]', program)}
    assert (12, 12) in shapes and (40, 40) not in shapes


def test_statistics_of_bfloat16_embeddings_are_float32():
    rng = np.random.default_rng(1)
    pair = [jnp.asarray(rng.normal(size=(24, 48)) + 3, jnp.bfloat16) for _ in range(2)]
    total, terms = losses.VICReg()(*pair)
    assert total.dtype == jnp.float32
    for name, value in np_terms(*(np.float64(z) for z in pair), 'mean', 'mean').items():
        assert terms[name].dtype == jnp.float32
        np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)


def test_constant_embeddings_have_a_finite_gradient():
    z = jnp.ones((8, 4))
    total, gradient = jax.value_and_grad(lambda z: losses.VICReg()(z, z)[0])(z)
    np.testing.assert_allclose(total, 25 * (1 - 1e-2), rtol=1e-5)  # eps = 1e-4 inside the root
    assert np.isfinite(gradient).all()
