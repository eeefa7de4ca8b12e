"""Supervised multi-label classification: what the same encoder learns from the labels."""

import dataclasses

import jax.numpy as jnp
import optax
from flax import linen as nn

from mlvicx_jax.errors import UserError
from mlvicx_jax.methods.shared.base import BaseMethod
from mlvicx_jax.models.context import torch_uniform
from mlvicx_jax.models.readout import READOUTS
from mlvicx_jax.models.resnet import ResNet18


class Classifier(nn.Module):
    """Images [b, h, w, 3] to `pooled`, the encoder's features [b, r], and `logits` [b, labels].

    `readout`: of models/readout.py, what the logits are linear in.
    """

    encoder: ResNet18
    labels: int
    readout: str = 'pooled'

    @nn.compact
    def __call__(self, images, train: bool):
        features = self.encoder(images, train)
        logits = nn.Dense(self.labels, kernel_init=torch_uniform, name='classifier')(
            READOUTS[self.readout](features)
        )
        return {'pooled': features['pooled'], 'logits': logits}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(BaseMethod):
    """A sigmoid and a binary cross-entropy for each label, meaned over labels and images.

    Attributes:
        labels: number of labels of the data set.
        readout: the features that the classifier sees: pooled, levels or grid.

    Raises:
        UserError: a read-out that is none.
    """

    labels: int = 15
    readout: str = 'pooled'

    def __post_init__(self):
        super().__post_init__()
        if self.readout not in READOUTS:
            raise UserError(f'readout={self.readout!r}: give one of {", ".join(READOUTS)}')

    @property
    def network(self):
        return Classifier(self.encoder, self.labels, self.readout)

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
