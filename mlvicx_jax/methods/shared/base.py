"""What a method answers, with the answers that most of them share."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from mlvicx_jax.data import augment
from mlvicx_jax.models.heads import MLP
from mlvicx_jax.models.resnet import ResNet18


class Embedder(nn.Module):
    """Encoder and projector: images [b, h, w, 3] to embeddings [b, r]."""

    encoder: ResNet18
    projector: MLP

    def __call__(self, images, train: bool):
        return self.projector(self.encoder(images, train)['pooled'], train)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseMethod:
    """Two views of each image, one network, no state of its own. See docs/architecture.md.

    Attributes:
        encoder: a `ResNet18`.
        recipes: {name of the view: its augmentation}, the config's `views`.
        image_size: side of the views, pixels.
    """

    encoder: ResNet18
    recipes: dict[str, augment.Recipe]
    image_size: int

    def __post_init__(self):
        """Refuses what no network can be built from; every whole number of a method is a size."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            size = lambda number: type(number) is int and number > 0
            if field.type is int and not size(value):
                raise ValueError(f'{field.name}={value!r}, expected a positive whole number')
            if field.type == tuple[int, ...] and not (value and all(map(size, value))):
                raise ValueError(f'{field.name}={value}, expected positive whole numbers such as (512, 128)')

    @property
    def network(self) -> nn.Module:
        """What is trained; its part called `encoder` is what is kept."""
        raise NotImplementedError

    @property
    def embeddings(self) -> dict[str, str]:
        """{name: key of forward's arrays} of what has its standard deviation and RankMe logged."""
        return {'embedding': 'embedding_1'}

    def mlp(self, widths, **options) -> MLP:
        """A head with the encoder's compute type and mesh axis."""
        return MLP(tuple(widths), dtype=self.encoder.dtype, axis_name=self.encoder.axis_name, **options)

    def init(self, key):
        """{'params', 'batch_stats'} of the network and the method's own state."""
        variables = self.init_network(key)
        return variables, self.init_state(key, variables)

    def init_network(self, key):
        image = jnp.zeros((1, self.image_size, self.image_size, 3), jnp.float32)
        variables = self.network.init(key, image, train=True)
        return {'params': variables['params'], 'batch_stats': variables['batch_stats']}

    def init_state(self, key, variables):
        """EMA tree, queue; {} where there is none."""
        return {}

    def views(self, keys, batch):
        """{name: array [b, ...]}; those with four axes are pictures in [0, 1].

        Args:
            keys: one a row.
            batch: 'image' uint8 [b, S, S, 1] and 'labels' uint8 [b, L].
        """
        return augment.views(keys, batch['image'], self.image_size, self.recipes)

    def forward(self, variables, method_state, views, key):
        """One device's part: arrays [b, ...] by name, new batch_stats, new method_state.

        Differentiated with respect to variables['params']. `key` is the same for the whole batch.
        """
        raise NotImplementedError

    def loss(self, out, method_state):
        """Scalar and {name: scalar} of the whole batch: `out` is forward's, of all devices."""
        raise NotImplementedError

    def update(self, method_state, params, out, progress):
        """The state after the optimiser's step; `params` are the new ones, `progress` in (0, 1]."""
        return method_state

    def reference_levels(self, batch_size):
        """{'level/<name>': loss} that a curve is read against; {} where none is known."""
        return {}

    def embed(self, network, variables, *images):
        """What `network` gives for each batch of grey images, in training mode, and the batch_stats
        after all of them: one pass a batch, so that BatchNorm sees them one at a time."""
        outputs = []
        for image in images:
            output, new = network.apply(
                variables, augment.standardise(image, self.encoder.dtype), True, mutable=['batch_stats']
            )
            variables = variables | new
            outputs.append(output)
        return outputs, variables['batch_stats']
