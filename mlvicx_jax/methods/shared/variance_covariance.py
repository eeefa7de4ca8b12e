"""What VICReg and MLVICX share: the loss of a pair of embeddings, its readings and its two levels."""

import dataclasses

from mlvicx_jax.methods.shared.base import BaseMethod
from mlvicx_jax.methods.shared.loss_bounds import Reduce, reference_levels
from mlvicx_jax.methods.shared.vicreg_loss import VICReg


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceCovariance(BaseMethod):
    """A method whose loss is `losses.VICReg` of each of its heads.

    Attributes:
        widths: of an expander's layers.
        alpha ... var_reduce: of each head's loss, see `losses.VICReg`.
    """

    widths: tuple[int, ...]
    alpha: float = 25.0
    beta: float = 25.0
    gamma: float = 1.0
    inv_reduce: Reduce = 'mean'
    var_reduce: Reduce = 'mean'

    def __post_init__(self):
        super().__post_init__()
        _ = self.criterion  # VICReg refuses a reading that it does not know

    @property
    def criterion(self) -> VICReg:
        return VICReg(self.alpha, self.beta, self.gamma, inv_reduce=self.inv_reduce, var_reduce=self.var_reduce)

    def reference_levels(self, batch_size):
        """Of one head."""
        levels = reference_levels(
            batch_size,
            self.widths[-1],
            self.alpha,
            self.beta,
            self.gamma,
            self.inv_reduce,
            self.var_reduce,
            self.criterion.eps,
        )
        return {f'level/{name}': value for name, value in levels.items()}
