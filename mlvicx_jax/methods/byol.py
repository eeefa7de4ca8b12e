"""BYOL: a network predicts what its own average makes of the other view (arXiv:2006.07733)."""

import dataclasses

import jax

from mlvicx_jax.methods.shared.base import BaseMethod, Embedder
from mlvicx_jax.methods.shared.prediction import PredictiveEmbedder, agreement, check_widths, spread
from mlvicx_jax.methods.shared.teacher import cosine_momentum, follow


def truncated_normal(key, shape, dtype):
    """Weights of a linear layer in Haiku: normal of deviation fan_in^-1/2, cut at twice that."""
    return jax.random.truncated_normal(key, -2, 2, shape, dtype) * shape[0] ** -0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(BaseMethod):
    """BYOL as its code computes it (google-deepmind/deepmind-research, byol/byol_experiment.py).

    The target network has an encoder and a projector of its own, drawn independently of the online
    network's; the predictor that the code gives it too is never used and left out. It sees both
    views in training mode, so its statistics are the batch's; only its weights are averaged.

    Attributes:
        projector, predictor: widths of their layers.
        momentum: of the target's average at the start; it rises to 1 on a cosine.
    """

    projector: tuple[int, ...] = (4096, 256)
    predictor: tuple[int, ...] = (4096, 256)
    momentum: float = 0.99

    def __post_init__(self):
        super().__post_init__()
        check_widths(self.projector, self.predictor)
        if not 0 <= self.momentum <= 1:
            raise ValueError(f'momentum={self.momentum}, expected a number from 0 to 1')

    @property
    def network(self):
        return PredictiveEmbedder(
            self.encoder,
            *(self.mlp(widths, kernel_init=truncated_normal) for widths in (self.projector, self.predictor)),
        )

    @property
    def target_network(self):
        return Embedder(self.encoder, self.network.projector)

    def init_state(self, key, variables):
        other = self.init_network(jax.random.fold_in(key, 1))
        return {
            'target': {
                collection: {part: leaves for part, leaves in tree.items() if part != 'predictor'}
                for collection, tree in other.items()
            }
        }

    @property
    def embeddings(self):
        return {name: f'{name}_1' for name in ('embedding', 'prediction', 'target')}

    def forward(self, variables, method_state, views, key):
        views, target = (views['first'], views['second']), method_state['target']
        passes, stats = self.embed(self.network, variables, *views)
        targets, target_stats = self.embed(self.target_network, target, *views)
        out: dict[str, jax.Array] = {}
        for number, ((embedding, prediction), goal) in enumerate(zip(passes, targets), 1):
            out |= {
                f'embedding_{number}': embedding,
                f'prediction_{number}': prediction,
                f'target_{number}': goal,
            }
        return out, stats, {'target': target | {'batch_stats': target_stats}}

    def loss(self, out, method_state):
        """|p - t|^2 of the unit vectors, 2 - 2 cos, summed over the two directions: in [0, 8]."""
        cosine = agreement((out['prediction_1'], out['prediction_2']), (out['target_1'], out['target_2']))
        return 4 * (1 - cosine), {'spread': spread(out['embedding_1'])}

    def update(self, method_state, params, out, progress):
        """The target after update k of K averages at progress k / K.

        The code has (k - 1) / K: over 300 epochs of 64 images the momentum differs by 4e-8 at most,
        less than float32 resolves near 1.
        """
        momentum = cosine_momentum(self.momentum, progress)
        return {'target': follow(method_state['target'], params, momentum)}
