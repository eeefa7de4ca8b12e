"""VICReg: variance, invariance and covariance of one embedding (arXiv:2105.04906)."""

import dataclasses

from mlvicx_jax.levels import reference_levels
from mlvicx_jax.losses import VICReg
from mlvicx_jax.methods.shared.base import BaseMethod, Embedder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(BaseMethod):
    """VICReg as its code computes it (facebookresearch/vicreg, main_vicreg.py).

    The code averages the invariance over features and halves the two variance terms; the paper sums
    the one over features and does not halve the other: `inv_reduce`, `var_reduce` = 'sum'.

    Attributes:
      widths: of the expander's layers.
      alpha ... var_reduce: of the loss, see `losses.VICReg`.
    """

    widths: tuple[int, ...] = (8192, 8192, 8192)
    alpha: float = 25.0
    beta: float = 25.0
    gamma: float = 1.0
    inv_reduce: str = 'mean'
    var_reduce: str = 'mean'

    def __post_init__(self):
        super().__post_init__()
        self.criterion  # refuses a reading that it does not know

    @property
    def criterion(self) -> VICReg:
        return VICReg(self.alpha, self.beta, self.gamma, inv_reduce=self.inv_reduce,
                      var_reduce=self.var_reduce)

    @property
    def network(self):
        return Embedder(self.encoder, self.mlp(self.widths))

    def forward(self, variables, method_state, views, key):
        (z1, z2), stats = self.embed(self.network, variables, views['first'], views['second'])
        return {'embedding_1': z1, 'embedding_2': z2}, stats, method_state

    def loss(self, out, method_state):
        return self.criterion(out['embedding_1'], out['embedding_2'])

    def reference_levels(self, batch_size):
        levels = reference_levels(batch_size, self.widths[-1], self.alpha, self.beta, self.gamma,
                                  self.inv_reduce, self.var_reduce, self.criterion.eps)
        return {f'level/{name}': value for name, value in levels.items()}
