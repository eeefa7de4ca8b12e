"""TiCo: transformation invariance and covariance contrast (arXiv:2206.10698)."""

import dataclasses

import jax
import jax.numpy as jnp

from mlvicx_jax.methods.shared.base import BaseMethod, Embedder
from mlvicx_jax.methods.shared.contrast import normalise
from mlvicx_jax.methods.shared.teacher import cosine_momentum, follow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(BaseMethod):
    """TiCo as its Algorithm 1: one direction, first views meet the momentum encoder's second views.

    Attributes:
        widths: of the projector's layers.
        covariance_momentum: beta, of the average of the embeddings' second moment.
        covariance_weight: rho.
        momentum: of the teacher at the start; it rises to 1 on a cosine.
    """

    widths: tuple[int, ...] = (4096, 256)
    covariance_momentum: float = 0.9
    covariance_weight: float = 20.0
    momentum: float = 0.99

    def __post_init__(self):
        super().__post_init__()
        momenta = self.covariance_momentum, self.momentum
        if not all(0 <= momentum <= 1 for momentum in momenta):
            raise ValueError(f'covariance_momentum, momentum = {momenta}, expected numbers from 0 to 1')

    @property
    def network(self):
        return Embedder(self.encoder, self.mlp(self.widths))

    def init_state(self, key, variables):
        width = self.widths[-1]
        return {'teacher': jax.tree.map(jnp.copy, variables), 'covariance': jnp.zeros((width, width))}

    def forward(self, variables, method_state, views, key):
        (z1,), stats = self.embed(self.network, variables, views['first'])
        (z2,), teacher_stats = self.embed(self.network, method_state['teacher'], views['second'])
        state = method_state | {'teacher': method_state['teacher'] | {'batch_stats': teacher_stats}}
        return {'embedding_1': normalise(z1), 'embedding_2': normalise(z2)}, stats, state

    def loss(self, out, method_state):
        """1 - mean z1.z2 + rho mean z1^T C z1; the gradient passes through C."""
        z1, invariance = out['embedding_1'], 1 - (out['embedding_1'] * out['embedding_2']).sum(1).mean()
        contrast = ((z1 @ self.covariance(z1, method_state)) * z1).sum(1).mean()
        return invariance + self.covariance_weight * contrast, {'invariance': invariance, 'contrast': contrast}

    def covariance(self, z1, method_state):
        """C [r, r] = beta C' + (1 - beta) Z1^T Z1 / b, C' that of the step before, 0 before the first."""
        now = jnp.matmul(z1.T, z1, precision=jax.lax.Precision.HIGHEST) / len(z1)
        return self.covariance_momentum * method_state['covariance'] + (1 - self.covariance_momentum) * now

    def update(self, method_state, params, out, progress):
        teacher = follow(method_state['teacher'], params, cosine_momentum(self.momentum, progress))
        return {'teacher': teacher, 'covariance': self.covariance(out['embedding_1'], method_state)}
