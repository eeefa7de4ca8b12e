"""Momentum contrast: a query network, its moving average, a queue of keys (arXiv:1911.05722)."""

import dataclasses

import jax
import jax.numpy as jnp

from mlvicx_jax import rows
from mlvicx_jax.methods.shared.base import BaseMethod, Embedder
from mlvicx_jax.methods.shared.contrast import enqueue, info_nce, new_queue, normalise
from mlvicx_jax.methods.shared.teacher import follow
from mlvicx_jax.models.decoder import Decoder
from mlvicx_jax.models.heads import MLP
from mlvicx_jax.models.resnet import ResNet18


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentumContrast(BaseMethod):
    """What MoCo and the methods built on it share (facebookresearch/moco, moco/builder.py).

    The first view is the query, the second the key, and the other images' keys of earlier steps
    are the negatives. The key network starts as the query network and follows it as an average; its
    BatchNorm is in training mode and keeps running statistics of its own.

    MoCo's BatchNorm sees the images of one GPU, and its keys are computed in shuffled order: in one
    BatchNorm batch with its key, a query would know it by their common statistics (section 3.3).
    `norm_groups` is that number of GPUs, whatever the number of devices here; with 1 there is
    nothing to shuffle between.

    Attributes:
        widths: of the contrast's head, whose layers have biases and no BatchNorm.
        queue: number of keys kept; a multiple of the batch.
        momentum: of the key network's average.
        temperature: of the contrast.
        norm_groups: parts of the batch with BatchNorm statistics of their own. MoCo's authors advise
            a batch of 64 on two GPUs (facebookresearch/moco, issue 47).
    """

    widths: tuple[int, ...] = (512, 128)
    queue: int = 65536
    momentum: float = 0.999
    temperature: float = 0.2
    norm_groups: int = 2

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.momentum <= 1:
            raise ValueError(f'momentum={self.momentum}, expected a number from 0 to 1')
        if not self.temperature > 0:
            raise ValueError(f'temperature={self.temperature}, expected a number above 0')

    @property
    def grouped_encoder(self) -> ResNet18:
        return self.encoder.clone(norm_groups=self.norm_groups)

    @property
    def projector(self) -> MLP:
        return self.mlp(self.widths, norm=False, bias=True)

    @property
    def decoder(self) -> Decoder:
        """For methods that also restore pictures; with the encoder's groups of BatchNorm."""
        return Decoder(
            self.encoder.width,
            dtype=self.encoder.dtype,
            axis_name=self.encoder.axis_name,
            norm_groups=self.norm_groups,
        )

    @property
    def key_network(self):
        """Computes keys; every part of it is one of `network`, of the same name."""
        return Embedder(self.grouped_encoder, self.projector)

    @property
    def network(self):
        return self.key_network

    def init_state(self, key, variables):
        """The key network, a copy, and a queue of random directions."""
        directions = normalise(jax.random.normal(key, (self.queue, self.widths[-1])))
        return {'key': self.copied(variables), 'queue': new_queue(directions)}

    def copied(self, variables):
        """The key network as it starts: the parts of `variables` that it has."""
        return {
            collection: {
                name: jax.tree.map(jnp.copy, tree[name]) for name in ('encoder', 'projector') if name in tree
            }
            for collection, tree in variables.items()
        }

    def key_pass(self, method_state, images, key):
        """What the key network gives for grey images [b, n, n, 1], row for row, and the new state.

        `key` draws the order in which the global batch passes the network. Putting the output back
        in its order gathers all of it on every device: mind what a network puts out.
        """
        variables, shuffle = method_state['key'], self.norm_groups > 1
        if shuffle:
            order = rows.permutation(key, len(images))
            images = rows.permute(images, order)
        (output,), stats = self.embed(self.key_network, variables, images)
        output = jax.lax.stop_gradient(output)
        if shuffle:
            back = jnp.argsort(order)
            output = jax.tree.map(lambda x: rows.permute(x, back), output)
        return output, method_state | {'key': variables | {'batch_stats': stats}}

    def contrast(self, out, method_state):
        """InfoNCE of the unit rows `embedding_1` (queries) and `embedding_2` (keys), and its terms.

        Where all embeddings are alike it is ln(queue + 1), 11.09 for 65,536 keys.
        """
        loss, accuracy = info_nce(
            out['embedding_1'], out['embedding_2'], method_state['queue']['keys'], self.temperature
        )
        return loss, {'contrast': loss, 'contrast_accuracy': accuracy}

    def update(self, method_state, params, out, progress):
        return {
            'key': follow(method_state['key'], params, self.momentum),
            'queue': enqueue(method_state['queue'], out['embedding_2']),
        }
