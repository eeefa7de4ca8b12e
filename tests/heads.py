"""A method without its encoder, and its heads in NumPy."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlvicx_jax.data.augment import IMAGENET_MEAN, IMAGENET_STD, Recipe

PIXELS = 8  # side of the pictures


class Pixels(nn.Module):
    """Stands in for an encoder: its features are the picture, row by row, colour last."""

    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    def __call__(self, images, train: bool):
        return {'pooled': images.reshape(len(images), -1)}


def method_on_pixels(name, **fields):
    """The method called `name` on `Pixels`, and variables whose every leaf is random."""
    module = importlib.import_module(f'mlvicx_jax.methods.{name}')
    method = module.Method(encoder=Pixels(), recipes={'first': Recipe()}, image_size=PIXELS, **fields)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda: method.network.init(jax.random.key(0), jnp.zeros((1, PIXELS, PIXELS, 3)), train=True)
    )
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    return method, {'batch_stats': {}} | variables


def pictures(count, seed):
    """Grey views [count, n, n, 1] in [0, 1]."""
    return np.random.default_rng(seed).random((count, PIXELS, PIXELS, 1), np.float32)


def np_pixels(images):
    """What `Pixels` sees of grey pictures: three standardised colours."""
    images = np.float64(images)
    colours = [(images[..., 0] - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD)]
    return np.stack(colours, -1).reshape(len(images), -1)


def np_mlp(params, x, last_norm):
    """Linear, BatchNorm, ReLU, ..., linear [, BatchNorm], with what parameters there are."""
    count = sum('linear' in name for name in params)
    for i in range(1, count + 1):
        linear, norm = params[f'linear{i}'], params.get(f'bn{i}', {})
        x = x @ np.float64(linear['kernel'])
        if i < count or last_norm:
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
            x = x * np.float64(norm.get('scale', 1)) + np.float64(norm.get('bias', 0))
        if i < count:
            x = np.maximum(x, 0)
    return x
