"""MLVICX: variance and covariance of the last level and of all levels together (arXiv:2403.11504)."""

import dataclasses

import jax
from flax import linen as nn

from mlvicx_jax.methods.shared.variance_covariance import VarianceCovariance
from mlvicx_jax.models.heads import MLP, Concatenate, ResizeProjectSum
from mlvicx_jax.models.resnet import ResNet18

HEADS = ('global', 'multi_level')


class Network(nn.Module):
    """Encoder, aggregation and one expander for each head; returns {head: embeddings [b, r]}."""

    encoder: ResNet18
    heads: tuple[str, ...]
    aggregation: str
    widths: tuple[int, ...]
    last_norm: bool

    @nn.compact
    def __call__(self, images, train: bool):
        features = self.encoder(images, train)
        expander = lambda head: MLP(
            self.widths,
            last_norm='affine' if self.last_norm else 'none',
            dtype=self.encoder.dtype,
            axis_name=self.encoder.axis_name,
            name=f'expander_{head}',
        )
        out = {}
        if 'global' in self.heads:
            out['global'] = expander('global')(features['pooled'], train)
        if 'multi_level' in self.heads:
            aggregate = (
                Concatenate()
                if self.aggregation == 'concat'
                else ResizeProjectSum(8 * self.encoder.width, dtype=self.encoder.dtype, name='aggregation')
            )
            out['multi_level'] = expander('multi_level')(aggregate(features), train)
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(VarianceCovariance):
    """MLVICX, Eq. 5: L(Z, Z') + multi_level_weight * L(M, M').

    Attributes:
        encoder: its context bottlenecks are part of the method and of the encoder.
        loss_heads: 'both', or one of 'global' and 'multi_level' (the ablation of Table IV).
        aggregation: of the five levels, 'concat' (paper) or 'sum' (release).
        widths: of the expanders' layers.
        last_norm: BatchNorm behind the expanders' last layer (release).
        multi_level_weight: lambda of Eq. 5; not stated in the paper, 1 in the release.
    """

    loss_heads: str = 'both'
    aggregation: str = 'concat'
    widths: tuple[int, ...] = (2048, 2048, 2048)
    last_norm: bool = False
    multi_level_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.loss_heads not in ('both', *HEADS):
            raise ValueError(f"loss_heads={self.loss_heads!r} is none of 'both', 'global', 'multi_level'")
        if self.aggregation not in ('concat', 'sum'):
            raise ValueError(f"aggregation={self.aggregation!r} is neither 'concat' nor 'sum'")

    @property
    def head_weights(self) -> dict[str, float]:
        """The heads that are trained and the weight of each in the total loss."""
        weights = {'global': 1.0, 'multi_level': self.multi_level_weight}
        return weights if self.loss_heads == 'both' else {self.loss_heads: 1.0}

    @property
    def network(self) -> Network:
        return Network(
            self.encoder, tuple(self.head_weights), self.aggregation, tuple(self.widths), self.last_norm
        )

    @property
    def embeddings(self):
        return {head: f'{head}_1' for head in self.head_weights}

    def forward(self, variables, method_state, views, key):
        passes, stats = self.embed(self.network, variables, views['first'], views['second'])
        out = {
            f'{head}_{number}': z
            for number, embeddings in enumerate(passes, 1)
            for head, z in embeddings.items()
        }
        return out, stats, method_state

    def loss(self, out, method_state):
        total: jax.Array | float = 0.0
        terms: dict[str, jax.Array] = {}
        for head, weight in self.head_weights.items():
            loss, head_terms = self.criterion(out[f'{head}_1'], out[f'{head}_2'])
            total += weight * loss
            terms |= {f'{head}/{term}': value for term, value in head_terms.items()}
            terms[f'{head}/loss'] = loss
        return total, terms

    def reference_levels(self, batch_size):
        total = sum(self.head_weights.values())
        return {name: total * level for name, level in super().reference_levels(batch_size).items()}
