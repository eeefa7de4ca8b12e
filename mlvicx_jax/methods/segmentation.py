"""Segmentation: a U-Net on the encoder, frozen or not, learns masks from Dice and cross-entropy."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mlvicx_jax.data import augment
from mlvicx_jax.errors import UserError
from mlvicx_jax.methods.shared.base import BaseMethod
from mlvicx_jax.models.decoder import Decoder, restoration_head
from mlvicx_jax.models.precision import wide
from mlvicx_jax.models.resnet import ResNet18


class UNet(nn.Module):
    """Images [b, n, n, 3] to `logits` [b, n, n, k] and `pooled`, the encoder's features [b, r].

    Of a frozen encoder BatchNorm is in evaluation mode at all times, and no gradient reaches it.
    """

    encoder: ResNet18
    decoder: Decoder
    segmentation: nn.Conv
    frozen_encoder: bool

    def __call__(self, images, train: bool):
        features = self.encoder(images, train and not self.frozen_encoder)
        if self.frozen_encoder:
            features = jax.lax.stop_gradient(features)
        maps = self.decoder(features, images.shape[1], train)
        return {'logits': wide(self.segmentation(maps[-1])), 'pooled': features['pooled']}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(BaseMethod):
    """Binary cross-entropy, meaned over pixels, plus 1 - Dice, both meaned over structures.

    Each structure has a sigmoid of its own, for structures may overlap. Dice is soft and of the
    whole batch: 2 sum p t / (sum p + sum t) over the pixels of all images, without smoothing, and
    of a structure that no image of the batch shows its term is 0. That is DiceLoss of
    segmentation_models_pytorch, whose decoder this is; the paper does not say which it takes. Dice
    of single images would say nothing but "all or none" of the many that show no pneumothorax.

    Attributes:
        structures: their number, that of config.data.target.
        frozen_encoder: whether the decoder alone learns. `config.optim.frozen` has to name the
            encoder too, or weight decay would still shrink it; configs/segment.py sets both.
    """

    structures: int = 1
    frozen_encoder: bool = False

    @property
    def network(self):
        encoder = self.encoder
        decoder = Decoder(encoder.width, dtype=encoder.dtype, axis_name=encoder.axis_name)
        head = restoration_head(self.structures, encoder.dtype, 'segmentation')
        return UNet(encoder, decoder, head, self.frozen_encoder)

    def views(self, keys, batch):
        """One view of each image, and its target [b, n, n, k] of 0 and 1 in the same geometry.

        Masks are warped as the image is and cut at a half; photometry is the image's alone.

        Raises:
            UserError: the batch has another number of structures, or there are several views.
        """
        found = batch['target'].shape[-1] if 'target' in batch else 0
        if found != self.structures:
            raise UserError(
                f'config.method.structures is {self.structures}, but '
                f'config.data.target names {found}; give as many'
            )
        if len(self.recipes) != 1:
            raise UserError(
                f'config.views has {", ".join(self.recipes)}; segmentation learns from one view of each image'
            )
        (recipe,) = self.recipes.values()
        drawn = augment.view_keys(keys, 0)  # the draws of `augment.views` for its first recipe
        pictures = 255 * batch['target']
        masks = [
            augment.geometry(drawn, pictures[..., c : c + 1], self.image_size, recipe)
            for c in range(self.structures)
        ]
        target = (jnp.concatenate(masks, -1) >= 0.5).astype(jnp.float32)
        return super().views(keys, batch) | {'target': target}

    def forward(self, variables, method_state, views, key):
        """Per image and structure [b, k]: cross-entropy, and means over pixels of p t, p and t."""
        (image,) = (view for name, view in views.items() if name != 'target')
        (found,), stats = self.embed(self.network, variables, image)
        logits, truth = found['logits'], views['target']
        probability = jax.nn.sigmoid(logits)
        pixels = {
            'cross_entropy': optax.sigmoid_binary_cross_entropy(logits, truth),
            'both': probability * truth,
            'predicted': probability,
            'truth': truth,
        }
        out = {name: x.mean((1, 2)) for name, x in pixels.items()}
        return out | {'embedding_1': found['pooled']}, stats, method_state

    def loss(self, out, method_state):
        both, predicted, truth = (out[name].sum(0) for name in ('both', 'predicted', 'truth'))
        shown = truth > 0
        dice = 2 * both / jnp.where(shown, predicted + truth, 1)
        terms = {'cross_entropy': out['cross_entropy'].mean(), 'dice': jnp.where(shown, 1 - dice, 0).mean()}
        return sum(terms.values()), terms
