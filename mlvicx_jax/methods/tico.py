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
        widths, momentum: of the projector's layers; of the teacher at the start, rising to 1 on a cosine.
        covariance_momentum, covariance_weight: beta, of the embeddings' average second moment, and rho.
    """

    widths: tuple[int, ...] = (4096, 256)
    covariance_momentum: float = 0.9
    covariance_weight: float = 20.0
    momentum: float = 0.99

    def __post_init__(self):
        super().__post_init__()
        if not (0 <= self.covariance_momentum <= 1 and 0 <= self.momentum <= 1):
            raise ValueError(f'{self.covariance_momentum=}, {self.momentum=}, expected numbers from 0 to 1')

    @property
    def network(self):
        return Embedder(self.encoder, self.mlp(self.widths))

    def init_state(self, key, variables):
        return {'teacher': jax.tree.map(jnp.copy, variables), 'covariance': jnp.zeros(2 * self.widths[-1:])}

    def forward(self, variables, method_state, views, key):
        (z1,), stats = self.embed(self.network, variables, views['first'])
        (z2,), teacher_stats = self.embed(self.network, method_state['teacher'], views['second'])
        state = method_state | {'teacher': method_state['teacher'] | {'batch_stats': teacher_stats}}
        return {'embedding_1': normalise(z1), 'embedding_2': normalise(z2)}, stats, state

    def loss(self, out, method_state):
        """1 - mean z1.z2 + rho mean z1^T C z1; the gradient passes through C."""
        z1, covariance = out['embedding_1'], self.covariance(out['embedding_1'], method_state)
        invariance = 1 - (z1 * out['embedding_2']).sum(1).mean()
        contrast = jnp.einsum('bi,ij,bj->b', z1, covariance, z1, precision=jax.lax.Precision.HIGHEST).mean()
        return invariance + self.covariance_weight * contrast, {'invariance': invariance, 'contrast': contrast}

    def covariance(self, z1, method_state):
        """C [r, r] = beta C' + (1 - beta) Z1^T Z1 / b, C' that of the step before, 0 before the first."""
        now = jnp.matmul(z1.T, z1, precision=jax.lax.Precision.HIGHEST) / len(z1)
        return self.covariance_momentum * method_state['covariance'] + (1 - self.covariance_momentum) * now

    def update(self, method_state, params, out, progress):
        teacher = follow(method_state['teacher'], params, cosine_momentum(self.momentum, progress))
        return {'teacher': teacher, 'covariance': self.covariance(out['embedding_1'], method_state)}
