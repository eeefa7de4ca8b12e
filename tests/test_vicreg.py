"""VICReg as a method: its loss against NumPy, constant embeddings, and its expander."""

import heads
import jax
import numpy as np


def loss(z1, z2):
    method, _ = heads.method_on_pixels('vicreg', widths=(1,))
    return method.loss({'embedding_1': np.float32(z1), 'embedding_2': np.float32(z2)}, {})[0]


def test_loss_is_the_released_codes():
    z = np.random.default_rng(0).normal(size=(2, 12, 40)) * np.linspace(0.01, 1.5, 40)
    invariance = np.mean((z[0] - z[1]) ** 2)
    std = np.sqrt(z.var(1, ddof=1) + 1e-4)
    variance = np.maximum(0, 1 - std).mean()  # also over the two views
    covariance = sum((np.cov(x.T)[~np.eye(40, dtype=bool)] ** 2).sum() / 40 for x in z)
    expected = 25 * invariance + 25 * variance + covariance
    np.testing.assert_allclose(loss(*z), expected, rtol=1e-5)


def test_constant_embeddings_lose_the_variance_alone():
    np.testing.assert_allclose(loss(*np.ones((2, 8, 5))), 24.75, rtol=1e-6)


def test_each_view_is_a_batch_of_its_own():
    method, variables = heads.method_on_pixels('vicreg', widths=(12, 12, 6))
    views = {'first': heads.pictures(9, 1), 'second': heads.pictures(9, 2)}
    out, _, _ = method.forward(variables, {}, views, None)
    expander = variables['params']['projector']
    for number, images in enumerate(views.values(), 1):
        z = heads.np_mlp(expander, heads.np_pixels(images), last_norm=False)
        np.testing.assert_allclose(out[f'embedding_{number}'], z, rtol=1e-4, atol=1e-3)


def test_expander_ends_without_bias_and_norm():
    method, _ = heads.method_on_pixels('vicreg', widths=(12, 10, 6))
    shapes = jax.tree.map(np.shape, jax.eval_shape(method.init_network, jax.random.key(0)))
    affine = lambda width: {'scale': (width,), 'bias': (width,)}
    assert shapes['params']['projector'] == {
        'linear1': {'kernel': (3 * heads.PIXELS**2, 12)},
        'bn1': affine(12),
        'linear2': {'kernel': (12, 10)},
        'bn2': affine(10),
        'linear3': {'kernel': (10, 6)},
    }
