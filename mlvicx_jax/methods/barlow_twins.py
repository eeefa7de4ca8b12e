"""Barlow Twins: the cross-correlation of two views becomes the identity (arXiv:2103.03230)."""

import dataclasses

import jax
import jax.numpy as jnp

from mlvicx_jax.methods.shared.base import BaseMethod, Embedder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(BaseMethod):
    """Barlow Twins as its code computes it (facebookresearch/barlowtwins, main.py).

    The features are standardised over the batch by the projector's last BatchNorm.

    Attributes:
        widths: of the projector's layers.
        off_diagonal: lambda, the weight of the correlations between different features.
    """

    widths: tuple[int, ...] = (8192, 8192, 8192)
    off_diagonal: float = 0.0051

    @property
    def network(self):
        return Embedder(self.encoder, self.mlp(self.widths, last_norm='plain'))

    def forward(self, variables, method_state, views, key):
        (z1, z2), stats = self.embed(self.network, variables, views['first'], views['second'])
        return {'embedding_1': z1, 'embedding_2': z2}, stats, method_state

    def loss(self, out, method_state):
        """sum_i (C_ii - 1)^2 + lambda sum_{i!=j} C_ij^2, C = Z1^T Z2 / b.

        As sum_{i!=j} C_ij^2 = |C|_F^2 - sum_i C_ii^2 and |Z1^T Z2|_F^2 = <Z1 Z1^T, Z2 Z2^T>, with
        fewer examples than features two b x b matrices give the number and C is never formed.
        """
        z1, z2 = out['embedding_1'], out['embedding_2']
        batch, width = z1.shape

        def product(a, b):
            return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST) / batch

        if batch < width:
            squares = (product(z1, z1.T) * product(z2, z2.T)).sum()
        else:
            squares = jnp.square(product(z1.T, z2)).sum()
        diagonal = (z1 * z2).mean(0)
        on = jnp.square(diagonal - 1).sum()
        off = squares - jnp.square(diagonal).sum()
        return on + self.off_diagonal * off, {'on_diagonal': on, 'off_diagonal': off}

    def reference_levels(self, batch_size):
        """Two levels of the loss that a curve is read against; b examples, r features.

        floor: the least possible loss. The views are centred, so C has rank <= k = b - 1 and
        |C|_F^2 >= (tr C)^2 / k. With d the mean of C_ii the loss is then, by Jensen, at least
        r ((1 - d)^2 + lambda d^2 (r / k - 1)) for r > k, which is least at
        1 / d = 1 + lambda (r / k - 1). Embeddings exist that attain it.

        share_nothing: the mean over all ways to pair the rows of two standardised views, whatever
        the views are: then C_ij has mean 0 and variance 1 / k.
        """
        width, rank = self.widths[-1], batch_size - 1
        excess = self.off_diagonal * max(0, width / rank - 1)
        return {
            'level/floor': width * excess / (1 + excess),
            'level/share_nothing': width * (1 + 1 / rank) + self.off_diagonal * width * (width - 1) / rank,
        }
