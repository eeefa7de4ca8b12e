"""SimSiam: a network predicts its own embedding of the other view (arXiv:2011.10566)."""

import dataclasses

import jax

from mlvicx_jax.methods.shared.base import BaseMethod
from mlvicx_jax.methods.shared.prediction import PredictiveEmbedder, agreement, check_widths, spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(BaseMethod):
    """SimSiam as its code computes it (facebookresearch/simsiam, simsiam/builder.py).

    BatchNorm without scale or shift stands behind the projector; the bias of the layer before it,
    which the code keeps and freezes, would cancel there and is left out.

    Attributes:
        projector: widths of its layers; the hidden ones are as wide as the encoder's output.
        predictor: widths of its layers.
    """

    projector: tuple[int, ...] = (512, 512, 2048)
    predictor: tuple[int, ...] = (512, 2048)

    def __post_init__(self):
        super().__post_init__()
        check_widths(self.projector, self.predictor)

    @property
    def network(self):
        return PredictiveEmbedder(
            self.encoder, self.mlp(self.projector, last_norm='plain'), self.mlp(self.predictor, bias=True)
        )

    @property
    def embeddings(self):
        return {name: f'{name}_1' for name in ('embedding', 'prediction')}

    def forward(self, variables, method_state, views, key):
        passes, stats = self.embed(self.network, variables, views['first'], views['second'])
        out: dict[str, jax.Array] = {}
        for number, (embedding, prediction) in enumerate(passes, 1):
            out |= {f'embedding_{number}': embedding, f'prediction_{number}': prediction}
        return out, stats, method_state

    def loss(self, out, method_state):
        """Minus the cosine, averaged over the two directions: in [-1, 1]."""
        cosine = agreement((out['prediction_1'], out['prediction_2']), (out['embedding_1'], out['embedding_2']))
        return -cosine, {'spread': spread(out['embedding_1'])}
