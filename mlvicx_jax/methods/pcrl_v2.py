"""PCRLv2: restoration and siamese comparison at every scale of a U-Net (Zhou et al., TPAMI 2023).

After the authors' code, RL4M/PCRLv2: models/pcrlv2_model.py, train_2d.py, datasets/chestDataset.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlvicx_jax.data import augment
from mlvicx_jax.data.corruption import cut_out
from mlvicx_jax.methods.shared.base import BaseMethod
from mlvicx_jax.methods.shared.contrast import cosine
from mlvicx_jax.models.decoder import Decoder, he_uniform, restoration_head
from mlvicx_jax.models.norm import batch_norm
from mlvicx_jax.models.precision import wide
from mlvicx_jax.models.resnet import ResNet18

BLOCKS = 5  # of the decoder: the levels at which views are compared and the image restored
xavier_uniform = nn.initializers.xavier_uniform()


class Network(nn.Module):
    """Encoder, decoder without skips, and two heads on each of the decoder's blocks.

    The biases that the code has in front of a BatchNorm are left out: it is blind to them.

    Attributes:
        encoder: a `ResNet18`.
        restores: whether pictures are made, too.
    """

    encoder: ResNet18
    restores: bool = True

    @nn.compact
    def __call__(self, images, train: bool):
        """For each block an embedding and its prediction, [b, c] both, and a picture [b, h, w, 3].

        Returns ([(embedding, prediction), ...], [picture, ...]). Behind the five blocks' pictures,
        each of its block's size, stands the restored image; without `restores` the list is empty.
        """
        dtype, axis_name = self.encoder.dtype, self.encoder.axis_name
        norm = batch_norm(train, dtype, axis_name)
        dense = functools.partial(nn.Dense, dtype=dtype, kernel_init=xavier_uniform)
        conv = functools.partial(nn.Conv, dtype=dtype, kernel_init=he_uniform)
        decoder = Decoder(self.encoder.width, skips=False, dtype=dtype, axis_name=axis_name, name='decoder')
        maps = decoder(self.encoder(images, train), images.shape[1], train)
        pairs, pictures = [], []
        for block, x in enumerate(maps, 1):
            channels = x.shape[-1]
            embedding = norm(name=f'embedding{block}')(wide(x).mean((1, 2)))
            y = dense(2 * channels, use_bias=False, name=f'predictor{block}_linear1')(embedding)
            y = nn.relu(norm(name=f'predictor{block}_bn')(y))
            pairs.append((embedding, dense(channels, name=f'predictor{block}_linear2')(y)))
            if self.restores:
                y = conv(channels, (3, 3), use_bias=False, name=f'picture{block}_conv1')(x)
                y = nn.relu(norm(name=f'picture{block}_bn')(y))
                pictures.append(conv(3, (1, 1), name=f'picture{block}_conv2')(y))
        if self.restores:
            pictures.append(restoration_head(3, dtype, 'restoration')(maps[-1]))
        return pairs, pictures


def siamese(first, second, levels):
    """-(cos(p, sg z') + cos(p', sg z)) / 2 of every example, at one level for each comparison.

    Args:
        first, second: for each level, embeddings z and predictions p [n, b, c] of n comparisons; n
            may be 1 in one of them, to be compared with all of the other's.
        levels: int [n], of each comparison.

    Returns:
        float32 [n, b].
    """
    every = jnp.stack(
        [
            -(cosine(p1, jax.lax.stop_gradient(z2)) + cosine(p2, jax.lax.stop_gradient(z1))) / 2
            for (z1, p1), (z2, p2) in zip(first, second)
        ]
    )
    return every[levels, jnp.arange(len(levels))]


def square_error(picture, target):
    """[b]: mean square of what `picture`, bilinearly enlarged, differs from the target by."""
    picture = jax.image.resize(wide(picture), target.shape, 'bilinear')
    return jnp.square(picture - target).mean((1, 2, 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(BaseMethod):
    """PCRLv2: MSE(restored first view) + S(first, second) + mean of S(view, crop) + beta MSE(deep).

    S is `siamese` at a level drawn for each of its calls, which the whole batch shares; there are 2
    `local_crops` + 1 calls a step. `deep` is the first view's picture at the level of S(first,
    second); beta falls from 1 to 0 on half a cosine over the run (the code writes 240 epochs). The
    target of both is the first view before its photometry and cut-out, standardised.

    Attributes:
        recipes: of `first`, `second` and, for the small crops, `local`.
        local_crops: small crops of each image.
        local_size: their side, pixels.
    """

    local_crops: int = 6
    local_size: int = 96

    @property
    def network(self):
        return Network(self.encoder)

    def init_state(self, key, variables):
        return {'progress': jnp.zeros((), jnp.float32)}

    def views(self, keys, batch):
        """`first` and `second`, cut out; `target`, `first` undamaged; `local_1` to `local_n`."""
        images, own = batch['image'], functools.partial(augment.view_keys, keys)
        target = augment.geometry(own(0), images, self.image_size, self.recipes['first'])
        first = augment.photometry(own(0), target, self.recipes['first'])
        second = augment.augment(own(1), images, self.image_size, self.recipes['second'])
        crops = {
            f'local_{i}': augment.augment(own(1 + i), images, self.local_size, self.recipes['local'])
            for i in range(1, self.local_crops + 1)
        }
        return {'first': cut_out(own(0), first), 'second': cut_out(own(1), second), 'target': target, **crops}

    def forward(self, variables, method_state, views, key):
        crops = jnp.concatenate([views[f'local_{i}'] for i in range(1, self.local_crops + 1)])
        [(first, pictures)], stats = self.embed(self.network, variables, views['first'])
        [(second, _), (local, _)], stats = self.embed(
            Network(self.encoder, restores=False), variables | {'batch_stats': stats}, views['second'], crops
        )
        out = {'embedding_1': wide(first[0][0])}

        first, second, local = jax.tree.map(  # [n, b, c]: one view each, and all the crops
            lambda x: x.reshape(-1, len(views['first']), x.shape[-1]), (first, second, local)
        )
        levels = jax.random.randint(key, (1 + 2 * self.local_crops,), 0, BLOCKS)
        between, of_first, of_second = jnp.split(levels, [1, 1 + self.local_crops])
        out['siamese'] = siamese(first, second, between)[0]
        out['local'] = jnp.concatenate(
            [siamese(first, local, of_first), siamese(second, local, of_second)]
        ).mean(0)

        target = augment.standardise(views['target'])
        *deep, restored = [functools.partial(square_error, picture) for picture in pictures]
        out['restoration'] = restored(target)
        out['deep_supervision'] = jax.lax.switch(between[0], deep, target)
        return out, stats, method_state

    def loss(self, out, method_state):
        terms = {name: out[name].mean() for name in ('restoration', 'siamese', 'local', 'deep_supervision')}
        beta = (1 + jnp.cos(jnp.pi * method_state['progress'])) / 2
        total = terms['restoration'] + terms['siamese'] + terms['local'] + beta * terms['deep_supervision']
        return total, terms | {'beta': beta}

    def update(self, method_state, params, out, progress):
        return {'progress': jnp.full_like(method_state['progress'], progress)}
