"""The supervised reference: its loss and classifier against NumPy, and labels that do not fit."""

import heads
import jax
import numpy as np
import pytest

from configs import quickstart, supervised
from mlvicx_jax.errors import UserError


def test_loss_follows_the_formula_and_stays_finite():
    method, _ = heads.method_on_pixels('supervised', labels=3)
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.normal(size=(5, 3)), rng.integers(2, size=(5, 3))
    total = 0
    for x, y in zip(logits.ravel(), labels.ravel()):
        p = 1 / (1 + np.exp(-x))
        total -= np.log(p if y else 1 - p)
    loss, terms = method.loss({'logits': np.float32(logits), 'labels': np.float32(labels)}, {})
    np.testing.assert_allclose(loss, total / 15, rtol=1e-5)
    assert terms == {}
    wrong = {'logits': np.float32([[1000, -1000, 0]]), 'labels': np.float32([[0, 1, 0]])}
    gradient = jax.grad(lambda x: method.loss(wrong | {'logits': x}, {})[0])(wrong['logits'])
    np.testing.assert_allclose(gradient, [[1 / 3, -1 / 3, 1 / 6]], rtol=1e-6)


def test_logits_are_linear_in_the_pooled_features():
    method, variables = heads.method_on_pixels('supervised', labels=3)
    labels = np.random.default_rng(0).integers(2, size=(4, 3), dtype=np.uint8)
    batch = {'image': np.uint8(255 * heads.pictures(4, 1)), 'labels': labels}
    views = method.views(jax.random.split(jax.random.key(0), 4), batch)
    assert views.keys() == {'first', 'labels'}
    out, _, _ = method.forward(variables, {}, views, None)
    pooled, linear = heads.np_pixels(views['first']), variables['params']['classifier']
    np.testing.assert_allclose(out['embedding_1'], pooled, atol=1e-5)
    logits = pooled @ np.float64(linear['kernel']) + linear['bias']
    np.testing.assert_allclose(out['logits'], logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(out['labels'], labels)


def test_another_number_of_labels_is_named():
    method, _ = heads.method_on_pixels('supervised', labels=15)
    batch = {'image': np.uint8(255 * heads.pictures(4, 1)), 'labels': np.zeros((4, 9), np.uint8)}
    with pytest.raises(UserError, match='is 15, .* 9 labels; give --config.method.labels=9'):
        method.views(jax.random.split(jax.random.key(0), 4), batch)
    with pytest.raises(ValueError, match='labels=0'):
        heads.method_on_pixels('supervised', labels=0)


def test_recipes_have_one_view_and_the_labels_of_their_data():
    full, small = supervised.get_config(), quickstart.get_config('supervised')
    assert list(full.views) == list(small.views) == ['first']
    assert (full.method.labels, small.method.labels) == (0, 0)  # as many as the data has
