"""Supervised multi-label classification: what the same encoder learns from the labels."""

import dataclasses

import jax.numpy as jnp
import optax
from flax import linen as nn

from mlvicx_jax.errors import UserError
from mlvicx_jax.methods.shared.base import BaseMethod
from mlvicx_jax.models.context import torch_uniform
from mlvicx_jax.models.resnet import ResNet18


class Classifier(nn.Module):
    """Images [b, h, w, 3] to `pooled`, the encoder's features [b, r], and `logits` [b, labels]."""

    encoder: ResNet18
    labels: int

    @nn.compact
    def __call__(self, images, train: bool):
        pooled = self.encoder(images, train)['pooled']
        logits = nn.Dense(self.labels, kernel_init=torch_uniform, name='classifier')(pooled)
        return {'pooled': pooled, 'logits': logits}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(BaseMethod):
    """A sigmoid and a binary cross-entropy for each label, meaned over labels and images.

    Attributes:
        labels: number of labels of the data set.
    """

    labels: int = 15

    @property
    def network(self):
        return Classifier(self.encoder, self.labels)

    def views(self, keys, batch):
        """One view of each image, and its labels.

        Raises:
            UserError: the images have another number of labels.
        """
        found = batch['labels'].shape[1]
        if found != self.labels:
            raise UserError(
                f'config.method.labels is {self.labels}, but the images of this data '
                f'set have {found} labels; give --config.method.labels={found}'
            )
        return super().views(keys, batch) | {'labels': batch['labels'].astype(jnp.float32)}

    def forward(self, variables, method_state, views, key):
        (found,), stats = self.embed(self.network, variables, views['first'])
        out = {'embedding_1': found['pooled'], 'logits': found['logits'], 'labels': views['labels']}
        return out, stats, method_state

    def loss(self, out, method_state):
        return optax.sigmoid_binary_cross_entropy(out['logits'], out['labels']).mean(), {}
