"""The encoder in PyTorch: ResNet-18 with context bottlenecks, from the folder this file lies in.

    import mlvicx_torch
    encoder = mlvicx_torch.load('.')
    features = encoder(mlvicx_torch.preprocess(image, encoder.image_size))
    features['pooled']        # [1, 512]; also stem, stage1, stage2, stage3, stage4

`image` is an 8-bit grey radiograph (dense tissue bright): a PIL image, or an array or tensor
[H, W] or [N, H, W]. Needs torch and safetensors, nothing else.
"""

import json
import pathlib

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in [0, 1]


def load(folder, device='cpu') -> 'Encoder':
    """The exported encoder, in evaluation mode. Raises a KeyError or RuntimeError if a tensor does
    not fit: nothing is ever skipped."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / 'config.json').read_text())
    encoder = Encoder(config['width'], config['context'], config['reduction'])
    tensors = load_file(folder / 'model.safetensors')
    if config['format'] == 'torchvision':  # zeros that stand in for the ImageNet classifier
        del tensors['fc.weight'], tensors['fc.bias']
    encoder.load_state_dict(tensors, strict=True)
    encoder.image_size = config['preprocessing']['size']
    return encoder.eval().to(device)


def preprocess(images, size: int) -> torch.Tensor:
    """8-bit grey radiographs to standardised float32 [N, 3, size, size].

    The whole image, resized by an antialiased bicubic (the aspect ratio is not kept), divided by
    255, repeated three times, and standardised with ImageNet's mean and deviation: what the
    encoder was trained and evaluated with, to 2e-5 of a standardised value.
    """
    if hasattr(images, 'convert'):  # a PIL image
        if images.mode not in ('L', 'LA', 'RGB', 'RGBA', 'P', '1'):
            raise ValueError(f'a PIL image of mode {images.mode}; scale it to 8 bits first')
        grey = images.convert('L')
        images = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8)
        images = images.reshape(grey.height, grey.width)
    images = torch.as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim not in (2, 3):
        raise ValueError(f'expected uint8 [H, W] or [N, H, W], found {images.dtype} {tuple(images.shape)}')
    images = images.reshape(-1, 1, *images.shape[-2:]).float() / 255
    images = F.interpolate(images, (size, size), mode='bicubic', antialias=True).clamp(0, 1)
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


class Encoder(nn.Module):
    """Maps standardised images [N, 3, H, W] to a dict of named features.

    `stem` [N, width, H/2, W/2], `stage1` (H/4), `stage2` (2 width, H/8), `stage3` (4 width, H/16),
    `stage4` (8 width, H/32), each already refined by its context bottleneck, and `pooled`
    [N, 8 width], the mean of `stage4`.
    """

    image_size = 224

    def __init__(self, width: int = 64, context: bool = True, reduction: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = {'stem': width}
        for stage in range(1, 5):
            into, out = width * 2 ** max(stage - 2, 0), width * 2 ** (stage - 1)
            setattr(
                self,
                f'layer{stage}',
                nn.Sequential(Block(into, out, 1 if stage == 1 else 2), Block(out, out, 1)),
            )
            channels[f'stage{stage}'] = out
        for level, count in channels.items():
            self.add_module(
                f'context_{level}', ContextBottleneck(count, reduction) if context else nn.Identity()
            )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = {}
        x = features['stem'] = self.get_submodule('context_stem')(F.relu(self.bn1(self.conv1(x))))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f'context_stage{stage}')(getattr(self, f'layer{stage}')(x))
            features[f'stage{stage}'] = x
        features['pooled'] = x.mean((2, 3))
        return features


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, projected only where the shape changes."""

    def __init__(self, into: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = (
            nn.Sequential()
            if stride == 1
            else nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.downsample(x) + y)


class ContextBottleneck(nn.Module):
    """Attention over the channels, then over the positions (arXiv:2403.11504, Eq. 1 and 2)."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.channel_squeeze = nn.Linear(channels, hidden, bias=False)
        self.channel_excite = nn.Linear(hidden, channels, bias=False)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, y):
        shared = lambda pooled: self.channel_excite(F.relu(self.channel_squeeze(pooled)))
        channel_map = torch.sigmoid(shared(y.mean((2, 3))) + shared(y.amax((2, 3))))
        y = y * channel_map[:, :, None, None]
        pools = torch.stack([y.mean(1), y.amax(1)], 1)
        return y * torch.sigmoid(self.spatial(pools))
