"""Signs of collapse in a batch of embeddings."""

import jax
import jax.numpy as jnp
from jax import Array


def feature_std(z: Array) -> Array:
    """Standard deviation over the batch, with 1 / (b - 1), averaged over the features.

    0 means that all images get one embedding; the variance term drives it to 1.

    Args:
        z: [b, r] embeddings of the global batch, b >= 2.

    Returns:
        float32 scalar.
    """
    return jnp.std(z.astype(jnp.float32), axis=0, ddof=1).mean()


def rankme(z: Array) -> Array:
    """Effective rank of a batch of embeddings: exp(-sum_k p_k log p_k).

    p_k = sigma_k / sum(sigma) + 1e-7, sigma the singular values of z as it is, not centred: Garrido
    et al., "RankMe", ICML 2023 (arXiv:2210.02885), equation 1. A batch of one repeated
    embedding, zeros included, gives about 1; an isotropic one about r when b >> r; never more than
    about min(b, r).

    Args:
        z: [b, r] embeddings of the global batch.

    Returns:
        float32 scalar.
    """
    # By SVD: a float32 Gram matrix loses what is below 3e-4 of the largest singular value, and a
    # collapsed batch is exactly one large value among many small ones.
    sigma = jnp.linalg.svd(z.astype(jnp.float32), compute_uv=False)
    p = sigma / jnp.maximum(sigma.sum(), jnp.finfo(jnp.float32).tiny) + 1e-7
    return jnp.exp(-jnp.sum(p * jnp.log(p)))


@jax.jit
def embedding_statistics(embeddings: dict[str, Array]) -> dict[str, Array]:
    """`std/<name>` and `rankme/<name>` of embeddings {name: [b, r]} of the global batch."""
    found: dict[str, Array] = {}
    for name, z in embeddings.items():
        found |= {f'std/{name}': feature_std(z), f'rankme/{name}': rankme(z)}
    return found
