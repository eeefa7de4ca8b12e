"""CAiD: momentum contrast whose query network also restores its view (arXiv:2204.07344)."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from mlvicx_jax.data import augment, corruption
from mlvicx_jax.methods.shared.contrast import normalise
from mlvicx_jax.methods.shared.momentum_contrast import MomentumContrast
from mlvicx_jax.models.decoder import Decoder, restoration_head
from mlvicx_jax.models.heads import MLP
from mlvicx_jax.models.precision import wide
from mlvicx_jax.models.resnet import ResNet18


class Network(nn.Module):
    """U-Net with a head for the contrast: embeddings [b, r] and pictures [b, n, n, 1] in (0, 1)."""

    encoder: ResNet18
    projector: MLP
    decoder: Decoder
    restoration: nn.Conv

    def __call__(self, images, train: bool):
        maps = self.encoder(images, train)
        picture = self.restoration(self.decoder(maps, images.shape[1], train)[-1])
        return self.projector(maps['pooled'], train), nn.sigmoid(wide(picture))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(MomentumContrast):
    """CAiD on MoCo v2, the one base in its released code: InfoNCE + restoration * MSE.

    Both views are corrupted; of the first the crop is to be restored as it was before all else. The
    code's key network has a decoder too, whose pictures it discards: here it has none.

    Attributes:
        restoration: weight of the mean squared error of grey in [0, 1].
        flip_target: restore the crop with the view's flip and rotation. The code does not: half of
            the inputs are mirrored against what is to be restored from them.
    """

    restoration: float = 10.0
    flip_target: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.restoration >= 0:
            raise ValueError(f'restoration={self.restoration}, expected a weight, 0 or more')

    @property
    def network(self):
        return Network(
            self.grouped_encoder,
            self.projector,
            self.decoder,
            restoration_head(1, self.encoder.dtype, 'restoration'),
        )

    def views(self, keys, batch):
        drawn = {name: augment.view_keys(keys, number) for number, name in enumerate(self.recipes)}
        views = {
            name: corruption.cut_or_shuffle(
                drawn[name], augment.augment(drawn[name], batch['image'], self.image_size, recipe)
            )
            for name, recipe in self.recipes.items()
        }
        recipe = self.recipes['first']
        if not self.flip_target:
            recipe = dataclasses.replace(recipe, flip=0.0, rotation=0.0)
        target = augment.geometry(drawn['first'], batch['image'], self.image_size, recipe)
        return views | {'target': target}

    def forward(self, variables, method_state, views, key):
        ((queries, pictures),), stats = self.embed(self.network, variables, views['first'])
        keys, method_state = self.key_pass(method_state, views['second'], key)
        out = {
            'embedding_1': normalise(queries),
            'embedding_2': normalise(keys),
            'restoration': jnp.square(pictures - views['target']).mean((1, 2, 3)),
        }
        return out, stats, method_state

    def loss(self, out, method_state):
        contrast, terms = self.contrast(out, method_state)
        restoration = out['restoration'].mean()
        return contrast + self.restoration * restoration, terms | {'restoration': restoration}
