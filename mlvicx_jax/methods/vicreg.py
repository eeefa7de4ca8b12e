"""VICReg: variance, invariance and covariance of one embedding (arXiv:2105.04906)."""

import dataclasses

from mlvicx_jax.methods.shared.base import Embedder
from mlvicx_jax.methods.shared.variance_covariance import VarianceCovariance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(VarianceCovariance):
    """VICReg as its code computes it (facebookresearch/vicreg, main_vicreg.py).

    The code averages the invariance over features and halves the two variance terms; the paper sums
    the one over features and does not halve the other: `inv_reduce`, `var_reduce` = 'sum'.
    """

    widths: tuple[int, ...] = (8192, 8192, 8192)

    @property
    def network(self):
        return Embedder(self.encoder, self.mlp(self.widths))

    def forward(self, variables, method_state, views, key):
        (z1, z2), stats = self.embed(self.network, variables, views['first'], views['second'])
        return {'embedding_1': z1, 'embedding_2': z2}, stats, method_state

    def loss(self, out, method_state):
        return self.criterion(out['embedding_1'], out['embedding_2'])
