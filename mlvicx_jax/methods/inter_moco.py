"""Inter_MoCo: momentum contrast that also brings intermediate maps together (Kaku et al., 2021)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlvicx_jax.methods.shared.contrast import normalise
from mlvicx_jax.methods.shared.momentum_contrast import MomentumContrast
from mlvicx_jax.models.heads import MLP
from mlvicx_jax.models.resnet import ResNet18

CELLS = {'stage1': 16, 'stage2': 16, 'stage3': 4, 'stage4': 4}  # side of the pooled maps


def adaptive_average(size: int, cells: int) -> np.ndarray:
    """The [cells, size] matrix that averages one axis as torch.nn.AdaptiveAvgPool2d does.

    Cell i covers the positions from floor(i size / cells) to ceil((i + 1) size / cells), that one
    left out: windows overlap where the division is not exact, as at 224 px.
    """
    cell, position = np.arange(cells)[:, None], np.arange(size)
    inside = (position >= cell * size // cells) & (position < -((cell + 1) * size // -cells))
    return inside / inside.sum(1, keepdims=True)


class Network(nn.Module):
    """Encoder and projector: images to embeddings [b, r] and {stage: pooled map [b, m, m, c]}."""

    encoder: ResNet18
    projector: MLP

    def __call__(self, images, train: bool):
        features = self.encoder(images, train)
        maps = {}
        for stage, cells in CELLS.items():
            rows, columns = (
                jnp.asarray(adaptive_average(n, cells), jnp.float32) for n in features[stage].shape[1:3]
            )
            maps[stage] = jnp.einsum(
                'ph,bhwc,qw->bpqc', rows, features[stage], columns, precision=jax.lax.Precision.HIGHEST
            )
        return self.projector(features['pooled'], train), maps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(MomentumContrast):
    """InfoNCE + sum_l weight_l |q_l - k_l|^2 / size of the map, l the four stages.

    The variant with the squared error, the one that the released script for radiographs can train
    (aakashrkaku/intermdiate_layer_matter_ssl, chest_xray/ssl_mocov2_mse.py). Its contrast is that
    of MoCo's first version: a linear head, its temperature. It ran on one GPU.

    Attributes:
        stage_weights: of the squared errors of stages 1 to 4.
    """

    widths: tuple[int, ...] = (128,)
    temperature: float = 0.07
    norm_groups: int = 1
    stage_weights: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)

    def __post_init__(self):
        super().__post_init__()
        if len(self.stage_weights) != len(CELLS):
            raise ValueError(f'stage_weights={self.stage_weights}, expected {len(CELLS)} numbers')

    @property
    def key_network(self):
        return Network(self.grouped_encoder, self.projector)

    def forward(self, variables, method_state, views, key):
        ((queries, query_maps),), stats = self.embed(self.network, variables, views['first'])
        (keys, key_maps), method_state = self.key_pass(method_state, views['second'], key)
        errors = {stage: jnp.square(query_maps[stage] - key_maps[stage]).mean((1, 2, 3)) for stage in CELLS}
        out = {'embedding_1': normalise(queries), 'embedding_2': normalise(keys)} | errors
        return out, stats, method_state

    def loss(self, out, method_state):
        total, terms = self.contrast(out, method_state)
        for stage, weight in zip(CELLS, self.stage_weights):
            terms[stage] = out[stage].mean()
            total += weight * terms[stage]
        return total, terms
