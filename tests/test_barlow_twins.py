"""Barlow Twins: its loss against NumPy, the Gram form against C, and the two levels of its loss."""

import itertools

import heads
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

LAMBDA = 0.3
SHAPES = {'batch < width': (12, 40), 'batch > width': (40, 12), 'equal': (16, 16)}


@pytest.fixture(scope='module')
def built():
    return heads.method_on_pixels('barlow_twins', widths=(12, 12, 6), off_diagonal=LAMBDA)


def standardise(z):
    return (z - z.mean(-2, keepdims=True)) / z.std(-2, keepdims=True)


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def pair(request):
    """Two views' standardised embeddings, related and correlated over features."""
    rng = np.random.default_rng(0)
    b, r = request.param
    z = rng.normal(size=(b, r)) @ rng.normal(size=(r, r)) / r**0.5
    return np.float32(standardise(np.stack([z, z + 0.7 * rng.normal(size=(b, r))])))


def np_terms(z1, z2):
    b, r = z1.shape
    on = off = 0
    for i, j in itertools.product(range(r), repeat=2):
        c = sum(np.float64(z1[n, i]) * np.float64(z2[n, j]) for n in range(b)) / b
        on, off = (on + (c - 1) ** 2, off) if i == j else (on, off + c**2)
    return on, off


def loss_of(method, z):
    return method.loss({'embedding_1': z[0], 'embedding_2': z[1]}, {})


def test_loss_follows_the_formula(built, pair):
    loss, terms = loss_of(built[0], pair)
    on, off = np_terms(*pair)
    np.testing.assert_allclose(terms['on_diagonal'], on, rtol=1e-5)
    np.testing.assert_allclose(terms['off_diagonal'], off, rtol=1e-4)
    np.testing.assert_allclose(loss, on + LAMBDA * off, rtol=1e-4)


def test_gram_form_has_the_gradient_of_the_direct_form(built, pair):
    def direct(z):
        c = jnp.matmul(z[0].T, z[1], precision='highest') / z.shape[1]
        eye = jnp.eye(len(c))
        return (jnp.square(c - eye) * jnp.where(eye, 1, LAMBDA)).sum()

    gradient, expected = (jax.grad(f)(jnp.asarray(pair)) for f in (lambda z: loss_of(built[0], z)[0], direct))
    scale = np.abs(expected).max((1, 2), keepdims=True)
    assert (scale > 0).all()  # both views learn
    np.testing.assert_allclose(gradient / scale, expected / scale, atol=1e-5)


def test_loss_never_forms_the_larger_square(built):
    shapes = {
        v.aval.shape
        for shape in SHAPES.values()
        for eqn in jax.make_jaxpr(lambda z: loss_of(built[0], z))(jnp.zeros((2, *shape))).eqns
        for v in eqn.outvars
    }
    assert (12, 12) in shapes and (40, 40) not in shapes


def test_each_view_is_a_batch_of_its_own_and_ends_standardised(built):
    method, variables = built
    views = {'first': heads.pictures(9, 1), 'second': heads.pictures(9, 2)}
    out, _, _ = method.forward(variables, {}, views, None)
    projector = variables['params']['projector']
    for number, images in enumerate(views.values(), 1):
        z = heads.np_mlp(projector, heads.np_pixels(images), last_norm=True)
        np.testing.assert_allclose(out[f'embedding_{number}'], z, atol=1e-4)
        np.testing.assert_allclose(z.std(0), 1, rtol=1e-4)
    assert jax.tree.map(np.shape, {name: projector[name] for name in projector if '3' in name}) == {
        'linear3': {'kernel': (12, 6)}
    }  # neither bias nor BatchNorm parameters
    _, terms = loss_of(method, [out['embedding_1']] * 2)
    assert terms['on_diagonal'] < 1e-6


def levels(method, batch_size):
    found = method.reference_levels(batch_size)
    return found['level/floor'], found['level/share_nothing']


def test_share_nothing_is_the_mean_over_all_pairings(built):
    # Of rows of one spread, of features that are nearly one, of copies: only the pairing counts.
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 5, 6))
    z[0] = z[0, :, :1] + 0.1 * z[0]
    z[1, :, 3:] = z[1, :, :3]
    z1, z2 = standardise(z)
    found = [np_terms(z1, z2[list(order)]) for order in itertools.permutations(range(5))]
    mean = np.mean([on + LAMBDA * off for on, off in found])
    np.testing.assert_allclose(levels(built[0], 5)[1], mean, rtol=1e-9)


def best(b, r, diagonal):
    """Standardised views with C_ii = diagonal and C of b - 1 equal eigenvalues, b = 5, 9, ..."""
    k = b - 1
    angle = 2 * np.pi * np.outer(np.repeat(np.arange(1, k // 2 + 1), 2), np.arange(r)) / r
    frame = np.sqrt(2 / k) * np.where(np.arange(k)[:, None] % 2, np.sin(angle), np.cos(angle))
    basis = np.sqrt(b) * np.linalg.svd(np.eye(b) - 1 / b)[0][:, :k]  # its columns sum to 0
    # Where one view is strong the other is weak: every direction's share of C is strong * weak.
    strong, weak = np.sqrt(1 + np.sqrt(1 - diagonal**2) * np.array([1, -1]))
    weights = np.where(np.arange(k) // 2 % 2, strong, weak)
    return np.stack([basis * weights @ frame, basis * (diagonal / weights) @ frame])


def test_floor_is_attained_and_no_descent_gets_below():
    b, r = 9, 40
    method, _ = heads.method_on_pixels('barlow_twins', widths=(r,), off_diagonal=0.1)
    floor = levels(method, b)[0]
    z = best(b, r, diagonal=1 / 1.4)  # 1 + lambda (r / k - 1) = 1.4
    np.testing.assert_allclose(standardise(z), z, atol=1e-9)
    np.testing.assert_allclose(loss_of(method, np.float32(z))[0], floor, rtol=1e-5)

    gradient = jax.jit(
        jax.value_and_grad(
            lambda z: loss_of(method, (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True))[0]
        )
    )
    for seed in range(3):
        start = np.random.default_rng(seed).normal(size=(2, b, r))
        found = minimize(
            lambda z: [np.float64(x).ravel() for x in gradient(z.reshape(2, b, r))],
            start.ravel(),
            jac=True,
            method='L-BFGS-B',
            options={'maxiter': 300},
        ).fun
        assert floor - 1e-5 < found < 1.001 * floor


def test_levels_at_the_recipes_size():
    method, _ = heads.method_on_pixels('barlow_twins', widths=(8192,))
    floor, share_nothing = levels(method, 64)
    assert floor == pytest.approx(3251, abs=2)
    assert levels(method, 2048)[0] == pytest.approx(124, abs=1)
    assert levels(method, 8193)[0] == 0
    rng = np.random.default_rng(0)
    z = np.float32(standardise(rng.normal(size=(2, 64, 8192))))
    assert loss_of(method, z)[0] == pytest.approx(share_nothing, rel=0.01)
