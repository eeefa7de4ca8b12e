"""Predicting one view's embedding from the other's, without negatives: BYOL and SimSiam."""

import jax
import jax.numpy as jnp

from mlvicx_jax.methods.shared.base import Embedder
from mlvicx_jax.methods.shared.contrast import cosine, normalise
from mlvicx_jax.models.heads import MLP


class PredictiveEmbedder(Embedder):
    """Encoder, projector, predictor: images [b, h, w, 3] to embeddings and predictions [b, r]."""

    predictor: MLP

    def __call__(self, images, train: bool):
        embedding = super().__call__(images, train)
        return embedding, self.predictor(embedding, train)


def check_widths(projector: tuple[int, ...], predictor: tuple[int, ...]) -> None:
    """Raises a ValueError unless both end in the same width."""
    if projector[-1] != predictor[-1]:
        raise ValueError(
            f'predictor={predictor} ends in {predictor[-1]}, expected the width of '
            f'what it predicts, {projector[-1]}, the last of projector={projector}'
        )


def agreement(predictions, targets):
    """Cosine between what is predicted from one view and the other's target, in [-1, 1].

    Averaged over the batch and the two directions.

    Args:
        predictions, targets: of the first and the second view, [B, r] each; no gradient goes into
            `targets`.
    """
    first, second = jax.lax.stop_gradient(targets)
    return (cosine(predictions[0], second) + cosine(predictions[1], first)).mean() / 2


def spread(embeddings):
    """0 where embeddings [B, r] share one direction, 1 where their directions are spread evenly.

    sqrt(r) times the standard deviation over the batch of z / |z|, averaged over the r features:
    the sign of collapse of Chen & He (arXiv:2011.10566, section 4.1), in units of its value
    1 / sqrt(r) for isotropic z.
    """
    return jnp.std(normalise(embeddings), 0).mean() * embeddings.shape[-1] ** 0.5
