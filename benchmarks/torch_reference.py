"""The `released` MLVICX program in PyTorch, as a contestant of benchmarks.run.

  python -m benchmarks.torch_reference --variant naive|tuned [--batch 16] [--dtype float32]

One program, that of configs/mlvicx.py:released, written twice. `naive` goes the way of the released
code: levels resized to 64 x 64 before they are projected, covariances of all pairs of features,
views made one by one on the CPU. `tuned` computes the same with all that PyTorch offers. Views are
made of one channel in both (the release's three equal ones would only cost more), and weights are
PyTorch's initial ones: a step costs the same with any. The naive views are made in the step's own process, one
after the other, and their seconds are told apart: a DataLoader would hide them behind a fast device.
`torch.compile` runs in its default mode. Needs torch and safetensors.
"""

import collections
import os
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import worker
from configs import mlvicx
from mlvicx_jax.errors import first_line
from mlvicx_jax.export.mlvicx_torch import MEAN, STD, Encoder

GRID, CELLS = 64, 4  # points and cells along an axis of the released aggregation
EPS = 1e-4  # added to variances under the root
TRUST, MOMENTUM = 0.001, 0.9  # of LARS
ASPECT = (3 / 4, 4 / 3)  # of crops: width / height
SOLARISE = 0.5  # the least value that is inverted
# A view's uniform numbers, each used or not, in the order of mlvicx_jax.data.augment.
DRAWS = (
    'area',
    'aspect',
    'top',
    'left',
    'flip',
    'jitter',
    'brightness',
    'contrast',
    'blur',
    'sigma',
    'solarise',
)


class ResizeFirst(nn.ModuleDict):
    """The released aggregation: resize to GRID, 1 x 1 convolution, sum, average to CELLS.

    Holds the convolutions, {level: 1 x 1 to 8 * width}; maps the encoder's features to
    [b, 8 * width, CELLS, CELLS].
    """

    def __init__(self, width: int, size: int):
        channels = dict(stem=1, stage1=1, stage2=2, stage3=4, stage4=8)
        super().__init__({level: nn.Conv2d(times * width, 8 * width, 1) for level, times in channels.items()})

    def forward(self, features):
        total = sum(
            project(F.interpolate(features[level], (GRID, GRID), mode='bilinear'))
            for level, project in self.items()
        )
        return F.avg_pool2d(total, GRID // CELLS)


class PoolFirst(ResizeFirst):
    """The same numbers by the commuted order: a matrix on each axis, then CELLS^2 projections.

    `size` is that of the network's (square) images.
    """

    def __init__(self, width: int, size: int):
        super().__init__(width, size)
        for level in self:
            size = -(-size // 2)
            resized = F.interpolate(torch.eye(size)[None], GRID, mode='linear')
            matrix = resized.reshape(size, CELLS, GRID // CELLS).mean(-1).T.contiguous()
            self.register_buffer(f'pool_{level}', matrix, persistent=False)

    def forward(self, features):
        total = 0
        for level, project in self.items():
            pool = getattr(self, f'pool_{level}')  # [CELLS, size of the level]
            y = features[level].permute(0, 2, 3, 1)  # as channels_last has it in memory
            y = pool @ (pool @ y.flatten(2)).unflatten(2, y.shape[2:])
            total = total + F.linear(y, project.weight.flatten(1), project.bias)
        return total.permute(0, 3, 1, 2)


def expander(into: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers, BatchNorm behind each, ReLU between them."""
    layers = collections.OrderedDict()
    for number, width in enumerate(widths, 1):
        if number > 1:
            layers[f'relu{number - 1}'] = nn.ReLU()
        layers[f'linear{number}'] = nn.Linear(into, width, bias=False)
        layers[f'bn{number}'] = nn.BatchNorm1d(width)
        into = width
    return nn.Sequential(layers)


class Network(nn.Module):
    """Standardised images [b, 3, n, n] to the embeddings [b, r] of both heads."""

    def __init__(self, config, aggregation: type[ResizeFirst]):
        super().__init__()
        width, widths = config.model.width, config.method.widths
        self.encoder = Encoder(width, config.model.context, config.model.reduction)
        self.aggregation = aggregation(width, config.data.image_size)
        self.expander_global = expander(8 * width, widths)
        self.expander_multi_level = expander(8 * width * CELLS**2, widths)

    def forward(self, images):
        features = self.encoder(images)
        return (
            self.expander_global(features['pooled']),
            self.expander_multi_level(self.aggregation(features).flatten(1)),
        )


def masked_covariance(z):
    """Squared off-diagonal entries of the r x r covariance, picked by a mask; over r."""
    batch, width = z.shape
    z = z - z.mean(0)
    covariance = z.T @ z / (batch - 1)
    off_diagonal = ~torch.eye(width, dtype=torch.bool, device=z.device)
    return covariance[off_diagonal].square().sum() / width


def gram_covariance(z):
    """The same by |Z^T Z|_F = |Z Z^T|_F: no r x r where there are fewer rows than features."""
    batch, width = z.shape
    z = z - z.mean(0)
    factor = z if batch < width else z.T
    whole = (factor @ factor.T).square().sum()
    return (whole - z.square().sum(0).square().sum()) / (batch - 1) ** 2 / width


def vicreg(z1, z2, weights: tuple[float, float, float], covariance: Callable):
    """Eq. 3 and 4 of the paper, as the release reads them, of two views' embeddings [b, r].

    `weights` are alpha, beta and gamma; `covariance` is one of the two above.
    """
    hinge = lambda z: F.relu(1 - torch.sqrt(z.var(0) + EPS)).mean()
    alpha, beta, gamma = weights
    return (
        alpha * F.mse_loss(z1, z2)
        + beta * (hinge(z1) + hinge(z2)) / 2
        + gamma * (covariance(z1) + covariance(z2))
    )


def total_loss(network, first, second, weights, covariance, dtype):
    """Eq. 5 with lambda 1. A pass for each view, as BatchNorm's statistics are a view's own."""
    with torch.autocast(first.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        heads = zip(network(first), network(second))
    wide = lambda z: z.to(torch.promote_types(z.dtype, torch.float32))
    return sum(vicreg(wide(z1), wide(z2), weights, covariance) for z1, z2 in heads)


def lars_by_leaf(parameters, gradients, momenta, rate, decay: float):
    """LARS in VICReg's order: decay, adapt, accumulate, and the learning rate last; in place.

    Vectors get neither decay nor adaptation.
    """
    for parameter, gradient, momentum in zip(parameters, gradients, momenta):
        if parameter.ndim > 1:
            gradient = gradient + decay * parameter
            norm, step = parameter.norm(), gradient.norm()
            gradient = gradient * torch.where((norm > 0) & (step > 0), TRUST * norm / step, 1.0)
        momentum.mul_(MOMENTUM).add_(gradient)
        parameter.sub_(rate * momentum)


def lars_together(parameters, gradients, momenta, rate, decay: float):
    """The same for all leaves at once; `gradients` are overwritten."""
    matrices = [leaf for leaf in parameters if leaf.ndim > 1]
    adapted = [leaf for leaf in gradients if leaf.ndim > 1]
    torch._foreach_add_(adapted, matrices, alpha=decay)
    norms, steps = (torch.stack(torch._foreach_norm(leaves)) for leaves in (matrices, adapted))
    trust = torch.where((norms > 0) & (steps > 0), TRUST * norms / steps, 1.0)
    torch._foreach_mul_(adapted, list(trust.unbind()))
    torch._foreach_mul_(momenta, MOMENTUM)
    torch._foreach_add_(momenta, gradients)
    torch._foreach_sub_(parameters, torch._foreach_mul(momenta, rate))


def crop_box(draws, extent: int, recipe: dict):
    """Top, left, height and width in pixels of crops of square images; the area is uniform.

    `draws` are {name of DRAWS: uniform numbers}, `recipe` is one of config.views; below as well.
    """
    low, high = recipe['area']
    area = low + draws['area'] * (high - low)
    least, most = area.clamp(*ASPECT), (1 / area).clamp(*ASPECT)  # with which the box is inside
    aspect = least * (most / least) ** draws['aspect']
    height = (extent * torch.sqrt(area / aspect)).clamp(max=extent)
    width = (extent * torch.sqrt(area * aspect)).clamp(max=extent)
    return draws['top'] * (extent - height), draws['left'] * (extent - width), height, width


def factor(draws, name: str, recipe: dict):
    """U(1 - x, 1 + x) for the jitter of that name."""
    return 1 + recipe[name] * (2 * draws[name] - 1)


def sigma_of(draws, size: int, recipe: dict):
    """The blur's standard deviation in pixels, given for views of 224."""
    low, high = recipe['blur_sigma']
    return (low + draws['sigma'] * (high - low)) * size / 224


def standardise(views):
    """Grey [..., 1, n, n] in [0, 1] to [..., 3, n, n] with ImageNet's mean and deviation."""
    mean, std = (torch.tensor(values, device=views.device)[:, None, None] for values in (MEAN, STD))
    return (views - mean) / std


def one_view(image: np.ndarray, draws, size: int, recipe: dict):
    """A view [1, size, size] of one uint8 image [n, n], as a DataLoader's worker makes it."""
    top, left, height, width = (round(edge.item()) for edge in crop_box(draws, len(image), recipe))
    crop = torch.from_numpy(image[top : top + height, left : left + width]) / 255
    view = F.interpolate(crop[None, None], (size, size), mode='bicubic', antialias=True)
    view = view[0, 0].clamp(0, 1)
    if draws['flip'] < recipe['flip']:
        view = view.flip(1)
    if draws['jitter'] < recipe['jitter_probability']:
        view = (factor(draws, 'brightness', recipe) * view).clamp(0, 1)
        mean = view.mean()
        view = (mean + factor(draws, 'contrast', recipe) * (view - mean)).clamp(0, 1)
    if draws['blur'] < recipe['blur_probability']:
        sigma = sigma_of(draws, size, recipe).item()
        view = torch.from_numpy(cv2.GaussianBlur(view.contiguous().numpy(), (0, 0), sigma))
    if draws['solarise'] < recipe['solarise_probability']:
        view = torch.where(view >= SOLARISE, 1 - view, view)
    return view[None]


def batched_views(images, draws, size: int, recipe: dict):
    """Views [b, 1, size, size] of uint8 images [b, n, n] by a matrix product on each axis."""
    on = lambda name, probability: (draws[name] < recipe[probability])[:, None, None]
    extent = images.shape[1]
    top, left, height, width = crop_box(draws, extent, recipe)
    rows = resampling_matrix(top, height, extent, size)
    columns = resampling_matrix(left, width, extent, size)
    columns = torch.where(on('flip', 'flip'), columns.flip(1), columns)
    views = (rows @ (images / 255) @ columns.mT).clamp(0, 1)

    brightness, contrast = (
        torch.where(on('jitter', 'jitter_probability'), factor(draws, name, recipe)[:, None, None], 1.0)
        for name in ('brightness', 'contrast')
    )
    views = (brightness * views).clamp(0, 1)
    mean = views.mean((1, 2), keepdim=True)
    views = (mean + contrast * (views - mean)).clamp(0, 1)

    blur = blur_matrix(sigma_of(draws, size, recipe), size)
    same = torch.eye(size, device=images.device)
    blur = torch.where(on('blur', 'blur_probability'), blur, same)
    views = (blur @ views @ blur.mT).clamp(0, 1)

    inverted = on('solarise', 'solarise_probability') & (views >= SOLARISE)
    return torch.where(inverted, 1 - views, views)[:, None]


def standardised_views(images, draws, size: int, recipes: list[dict]):
    """A batch for each recipe, with numbers [recipes, DRAWS, b]; as channels_last."""
    return [
        standardise(batched_views(images, dict(zip(DRAWS, numbers)), size, recipe)).contiguous(
            memory_format=torch.channels_last
        )
        for numbers, recipe in zip(draws, recipes)
    ]


def resampling_matrix(start, length, extent: int, size: int):
    """Antialiased bicubic weights [b, size, extent] of [start, start + length), Keys' a = -1/2."""
    scale = (length / size)[:, None, None]
    targets = torch.arange(size, device=start.device)[:, None]
    centre = start[:, None, None] + (targets + 0.5) * scale - 0.5
    distance = (torch.arange(extent, device=start.device) - centre).abs() / scale.clamp(min=1)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(-1, keepdim=True)


def blur_matrix(sigma, size: int):
    """Gaussian weights [b, size, size] along an axis."""
    positions = torch.arange(size, device=sigma.device)
    weights = torch.exp(-0.5 * ((positions - positions[:, None]) / sigma[:, None, None]) ** 2)
    return weights / weights.sum(-1, keepdim=True)


class Naive:
    """The released way.

    Args:
        config: configs/mlvicx.py:released at the benchmark's sizes.
        images: uint8 [b, n, n].
    """

    aggregation, memory_format = ResizeFirst, torch.contiguous_format

    def __init__(self, config, images: np.ndarray, device: torch.device, dtype: torch.dtype):
        self.images, self.device, self.dtype = images, device, dtype
        self.size, self.decay = config.data.image_size, config.optim.weight_decay
        self.rate = config.optim.learning_rate * config.batch_size / 256  # after the warm-up
        self.weights = config.method.alpha, config.method.beta, config.method.gamma
        self.recipes = [dict(config.views[name]) for name in ('first', 'second')]
        self.network = Network(config, self.aggregation).to(device, memory_format=self.memory_format)
        self.parameters = list(self.network.parameters())
        self.momenta = [torch.zeros_like(leaf) for leaf in self.parameters]

    def views(self):
        """The two standardised batches [b, 3, size, size] on the device."""
        draw = lambda: dict(zip(DRAWS, torch.rand(len(DRAWS))))
        return [
            torch.stack([standardise(one_view(image, draw(), self.size, recipe)) for image in self.images]).to(
                self.device
            )
            for recipe in self.recipes
        ]

    def loss(self, first, second):
        return total_loss(self.network, first, second, self.weights, masked_covariance, self.dtype)

    def update(self, gradients):
        lars_by_leaf(self.parameters, gradients, self.momenta, self.rate, self.decay)

    def step(self) -> dict:
        """Makes one step to its end; what it took, with the share of the views."""
        start, before = time.perf_counter(), self.mark()
        views = self.views()
        after = self.mark()
        self.loss(*views).backward()
        with torch.no_grad():
            self.update([leaf.grad for leaf in self.parameters])
        self.network.zero_grad()
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
            augmentation = before.elapsed_time(after) / 1000
        else:
            augmentation = after - before
        return {'seconds': time.perf_counter() - start, 'parts': {'augmentation': augmentation}}

    def mark(self):
        """A moment of the device, which does not wait for it."""
        if self.device.type != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Tuned(Naive):
    """The same on the device, in channels_last, and compiled unless `compiled` says no."""

    aggregation, memory_format = PoolFirst, torch.channels_last

    def __init__(self, config, images, device, dtype, compiled: bool = True):
        super().__init__(config, images, device, dtype)
        self.images = torch.from_numpy(images).to(device)
        torch.backends.cudnn.benchmark = True
        self.draw_views, self.total_loss, self.lars = (
            torch.compile(function, dynamic=False, disable=not compiled)
            for function in (standardised_views, total_loss, lars_together)
        )

    def views(self):
        # Pictures as exact as the naive ones; TensorFloat-32, where there is any, for the rest.
        torch.set_float32_matmul_precision('highest')
        draws = torch.rand(len(self.recipes), len(DRAWS), len(self.images), device=self.device)
        views = self.draw_views(self.images, draws, self.size, self.recipes)
        torch.set_float32_matmul_precision('high')
        return views

    def loss(self, first, second):
        return self.total_loss(self.network, first, second, self.weights, gram_covariance, self.dtype)

    def update(self, gradients):
        rate = torch.full((), self.rate, device=self.device)  # as a number it would be compiled in
        self.lars(self.parameters, gradients, self.momenta, rate, self.decay)


VARIANTS = {'naive': Naive, 'tuned': Tuned}


def main():
    started = time.perf_counter()
    parser = worker.parser(__doc__)
    parser.add_argument('--variant', choices=VARIANTS, required=True)
    parser.add_argument('--expander', type=int, default=4096, help="width of the expanders' layers")
    arguments = parser.parse_args()
    config = mlvicx.get_config('released')
    config.batch_size, config.data.image_size = arguments.batch, arguments.size
    config.model.width = arguments.width
    config.method.widths = (arguments.expander,) * len(config.method.widths)
    cuda = torch.cuda.is_available()
    parts = (
        config,
        worker.images(arguments.batch, arguments.stored)[..., 0],
        torch.device('cuda' if cuda else 'cpu'),
        getattr(torch, arguments.dtype),
    )

    program = VARIANTS[arguments.variant](*parts)
    compiled = arguments.variant == 'tuned'
    try:
        program.step()
    except torch._dynamo.exc.TorchDynamoException as error:  # such as no C++ compiler
        print(f'torch.compile failed, steps run without it: {first_line(error)}', file=sys.stderr)
        compiled, program = False, Tuned(*parts, compiled=False)
        program.step()
    first_step = time.perf_counter() - started
    program.step()  # what is only found out at a second step, such as memory to be had again

    device = torch.cuda.get_device_name() if cuda else f'cpu ({os.cpu_count()} cores)'
    ready = {
        'first_step_s': first_step,
        'device': f'1 x {device}',
        'versions': {'torch': torch.__version__, 'cuda': torch.version.cuda},
        'parameters': sum(leaf.numel() for leaf in program.parameters),
        'compiled': compiled,
    }
    worker.serve(ready, program.step, torch.cuda.max_memory_allocated if cuda else lambda: None)


if __name__ == '__main__':
    main()
