"""PCRL: contrast, and restoring what tells one view's context from another's (arXiv:2109.04379)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlvicx_jax import rows
from mlvicx_jax.data import augment, corruption
from mlvicx_jax.methods.shared.contrast import enqueue, new_queue, normalise, similarities
from mlvicx_jax.methods.shared.momentum_contrast import MomentumContrast
from mlvicx_jax.methods.shared.teacher import follow
from mlvicx_jax.models.decoder import Decoder, restoration_head
from mlvicx_jax.models.heads import MLP
from mlvicx_jax.models.resnet import LEVELS, ResNet18

CONTRASTS = 'clean', 'mixed', 'mixed_keys'
RESTORATIONS = 'plain', 'crossed', 'mixed_plain', 'mixed_crossed'


class Teacher(nn.Module):
    """Encoder and the contrast's head: embeddings [b, r] of images [b, n, n, 3], and their maps."""

    encoder: ResNet18
    projector: MLP

    def __call__(self, images, train: bool):
        features = self.encoder(images, train)
        return (self.projector(features['pooled'], train), {level: features[level] for level in LEVELS})


class Student(Teacher):
    """Also restores pictures, from its own maps and from the teacher's mixed in."""

    gate: MLP
    decoder: Decoder
    restoration: nn.Conv

    def __call__(self, images, train: bool):
        """Every part once, for the initialisation."""
        _, maps = super().__call__(images, train)
        return self.restore(images, maps, 1.0, [jnp.zeros((len(images), 6))] * 2, train)

    def restore(self, images, teacher, alpha, codes, train: bool):
        """Embeddings, and pictures [b, n, n, 3] restored from own and from crossed maps.

        Args:
            teacher: maps of the other views; alpha times the own maps and 1 - alpha times these are
                the crossed ones.
            codes: of the student's and of the teacher's pictures [b, 6], which scale the channels of
                the deepest maps; or None.
        """
        embedding, maps = super().__call__(images, train)
        if codes:
            maps, teacher = (
                m | {'stage4': m['stage4'] * nn.sigmoid(self.gate(code, train))[:, None, None]}
                for m, code in zip((maps, teacher), codes)
            )
        crossed = jax.tree.map(lambda own, other: alpha * own + (1 - alpha) * other, maps, teacher)
        pictures = (self.restoration(self.decoder(m, images.shape[1], train)[-1]) for m in (maps, crossed))
        return embedding, *pictures


def draw_codes(keys):
    """Codes [b, 6]: is it upside down, is it mirrored, and one-hot the quarter turns 0 to 3."""

    def draw(key):
        flips, turns = jax.random.split(key)
        return jnp.concatenate(
            [
                jax.random.bernoulli(flips, 0.5, (2,)).astype(jnp.float32),
                jax.nn.one_hot(jax.random.randint(turns, (), 0, 4), 4),
            ]
        )

    return jax.vmap(draw)(keys)


def transform(codes, pictures):
    """Pictures [b, n, n, c] flipped, then turned anticlockwise, as their codes [b, 6] say."""

    def one(code, picture):
        picture = jnp.where(code[0] > 0, picture[::-1], picture)
        picture = jnp.where(code[1] > 0, picture[:, ::-1], picture)
        return jnp.stack([jnp.rot90(picture, k) for k in range(4)])[jnp.argmax(code[2:])]

    return jax.vmap(one)(codes, pictures)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(MomentumContrast):
    """PCRL as its released code trains it (Luchixiang/PCRL, pytorch/pcrl.py).

    A student sees the first views and a teacher, its average, the second. The student learns to
    name the teacher's view of its image, and to restore pictures: its own view, turned as a code
    says that scales its deepest map; both views at once, from its maps and the teacher's mixed; and
    once more both for mixtures of two images. All mixing ratios are drawn once a step.

    The code scales the deepest map where the paper takes an outer product with the code.

    Attributes:
        norm_groups: as in `MomentumContrast`; the code runs on four GPUs, with shuffled keys.
        aligned_targets: restore mixtures with their rotation and flip. The code's targets are the
            bare crops: half of the inputs are mirrored against what is to be restored from them.
    """

    widths: tuple[int, ...] = (128, 128)
    queue: int = 16384
    norm_groups: int = 4
    aligned_targets: bool = False

    @property
    def key_network(self):
        return Teacher(self.grouped_encoder, self.projector)

    @property
    def network(self):
        gate = self.mlp((256, 8 * self.encoder.width), norm=False, bias=True)
        return Student(
            self.grouped_encoder,
            self.projector,
            gate,
            self.decoder,
            restoration_head(3, self.encoder.dtype, 'restoration'),
        )

    def init_state(self, key, variables):
        """Also a queue uniform in +-sqrt(3 / r), with rows of length about 1, and no normaliser."""
        width = self.widths[-1]
        keys = jax.random.uniform(key, (self.queue, width), minval=-1) * (3 / width) ** 0.5
        return {'key': self.copied(variables), 'queue': new_queue(keys), 'log_normaliser': jnp.array(-jnp.inf)}

    def views(self, keys, batch):
        """Of each view the input under its name, its `_code`, `_transformed` (the input as the code
        says) and `_target` (what its crop shows before all else)."""
        views: dict[str, jax.Array] = {}
        for number, (name, recipe) in enumerate(self.recipes.items()):
            drawn = augment.view_keys(keys, number)
            crop = dataclasses.replace(recipe, flip=0.0, rotation=0.0)
            shown, target = (
                augment.geometry(drawn, batch['image'], self.image_size, r)
                for r in (recipe, recipe if self.aligned_targets else crop)
            )
            view = corruption.cut_out(drawn, augment.photometry(drawn, shown, recipe))
            code = draw_codes(augment.view_keys(keys, len(self.recipes) + number))
            views |= {
                name: view,
                f'{name}_target': target,
                f'{name}_code': code,
                f'{name}_transformed': transform(code, view),
            }
        return views

    @property
    def embeddings(self):
        return {name: f'{name}_1' for name in ('embedding', 'mixed')}

    def forward(self, variables, method_state, views, key):
        shuffle_key, partner_key, ratio_key = jax.random.split(key, 3)
        partners = rows.permutation(partner_key, len(views['first']))
        ratios = jax.random.uniform(ratio_key, (3,))  # Beta(1, 1)
        ratio, alpha_clean, alpha_mixed = jnp.maximum(ratios, 1 - ratios)

        def mix(x):
            return ratio * x + (1 - ratio) * rows.permute(x, partners)

        def branch(first, second, target, other_target, alpha, codes=None):
            """Both views' embeddings, and mean squared errors [b, 2] of the restored pictures."""
            nonlocal variables, method_state
            (taught, maps), method_state = self.key_pass(method_state, second, shuffle_key)
            (learnt, *pictures), stats = self.network.apply(
                variables,
                augment.standardise(first, self.encoder.dtype),
                maps,
                alpha,
                codes,
                True,
                method='restore',
                mutable=['batch_stats'],
            )
            variables = variables | stats
            targets = target, alpha * target + (1 - alpha) * other_target
            errors = [
                jnp.square(picture - augment.standardise(grey)).mean((1, 2, 3))
                for picture, grey in zip(pictures, targets)
            ]
            return learnt, taught, jnp.stack(errors, -1)

        clean, clean_keys, clean_errors = branch(
            views['first'],
            views['second'],
            views['first_transformed'],
            views['second_transformed'],
            alpha_clean,
            [views['first_code'], views['second_code']],
        )
        mixed, mixed_keys, mixed_errors = branch(
            mix(views['first']),
            mix(views['second']),
            mix(views['first_target']),
            mix(views['second_target']),
            alpha_mixed,
        )
        out = {
            'embedding_1': clean,
            'embedding_2': clean_keys,
            'mixed_1': mixed,
            'mixed_2': mixed_keys,
            'mixed_keys': mix(clean_keys),
        }
        out = {name: normalise(z) for name, z in out.items()}
        out['restoration'] = jnp.concatenate([clean_errors, mixed_errors], -1)
        return out, variables['batch_stats'], method_state

    def contrasts(self, out, method_state):
        """The three noise-contrastive losses and what they leave behind: queue and normaliser.

        Noise-contrastive estimation tells a query's key from the K negatives by logistic regression
        with odds exp(s / T) / (K Z); Z is the mean of exp(s / T) in the first of all batches. Each
        loss writes its keys into the queue, where the next one meets them as negatives.
        """
        queue, log_normaliser = method_state['queue'], method_state['log_normaliser']
        losses = []
        for queries, keys in (
            ('embedding_1', 'embedding_2'),
            ('mixed_1', 'mixed_2'),
            ('mixed_1', 'mixed_keys'),
        ):
            logits = similarities(out[queries], out[keys], queue['keys']) / self.temperature
            log_mean = jax.lax.stop_gradient(jax.nn.logsumexp(logits) - jnp.log(logits.size))
            log_normaliser = jnp.where(jnp.isinf(log_normaliser), log_mean, log_normaliser)
            logits -= log_normaliser + jnp.log(len(queue['keys']))
            losses.append((jax.nn.softplus(-logits[:, 0]) + jax.nn.softplus(logits[:, 1:]).sum(-1)).mean())
            queue = enqueue(queue, jax.lax.stop_gradient(out[keys]))
        return losses, {'queue': queue, 'log_normaliser': log_normaliser}

    def loss(self, out, method_state):
        contrasts, _ = self.contrasts(out, method_state)
        restorations = out['restoration'].mean(0)
        terms = {f'contrast/{name}': x for name, x in zip(CONTRASTS, contrasts)}
        terms |= {f'restoration/{name}': x for name, x in zip(RESTORATIONS, restorations)}
        return sum(contrasts) / 3 + restorations.mean(), terms

    def update(self, method_state, params, out, progress):
        _, left_behind = self.contrasts(out, method_state)
        return {'key': follow(method_state['key'], params, self.momentum), **left_behind}
