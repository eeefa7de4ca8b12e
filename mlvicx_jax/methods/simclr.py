"""SimCLR: each view finds the other of its image among all in the batch (arXiv:2002.05709)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mlvicx_jax.methods.shared.base import BaseMethod, Embedder
from mlvicx_jax.methods.shared.contrast import normalise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(BaseMethod):
    """SimCLR as its second version's code computes it (google-research/simclr).

    Both views of all N images are one BatchNorm batch of 2N (model.py). A loss of 2 ln(2N - 1) is
    that of equal embeddings, and on average none is lower of views that share nothing.

    Attributes:
        widths: of the projector's layers; the hidden ones are as wide as the encoder's output.
        temperature: of the similarities.
    """

    widths: tuple[int, ...] = (512, 512, 128)
    temperature: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f'temperature={self.temperature}, expected a number above 0')

    @property
    def network(self):
        # model_util.py: BatchNorm behind every layer, the last one's without a shift.
        return Embedder(
            self.encoder, self.mlp(self.widths, last_norm='scale', kernel_init=nn.initializers.normal(0.01))
        )

    def forward(self, variables, method_state, views, key):
        both = jnp.concatenate([views['first'], views['second']])
        (z,), stats = self.embed(self.network, variables, both)
        z1, z2 = jnp.split(normalise(z), 2)
        return {'embedding_1': z1, 'embedding_2': z2}, stats, method_state

    def loss(self, out, method_state):
        """The two views' cross-entropies, each meaned over the batch, are summed (objective.py)."""
        z = jnp.concatenate([out['embedding_1'], out['embedding_2']])
        similarity = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST)
        logits = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, similarity / self.temperature)
        partner = jnp.roll(jnp.arange(len(z)), len(z) // 2)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, partner)
        return 2 * entropy.mean(), {'contrast_accuracy': (logits.argmax(-1) == partner).mean()}
