"""PCRLv2 (Zhou et al., TPAMI 2023) as its released code trains it, on ChestX-ray14 with a ResNet-18.

  python main.py --config=configs/pcrl_v2.py --config.data.manual_dir=DIR

The code starts from an encoder trained on ImageNet, the default of the library that it takes the
encoder from; this recipe starts from random weights, as the other methods do. The code's reading, with
torchvision's weights as a file: --config.init=resnet18-5c106cde.pth
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    config.model.update(context=False, zero_init_residual=False)
    config.method = ConfigDict(dict(name='pcrl_v2', local_crops=6, local_size=96))
    for view in (config.views.first, config.views.second):
        view.update(
            area=(0.3, 1.0),
            rotation=10.0,
            jitter_probability=1.0,
            blur_probability=0.5,
            solarise_probability=0.0,
        )
    config.views.local = ConfigDict(config.views.first.to_dict())
    config.views.local.area = (0.05, 0.3)
    # U(0.1, 2) pixels of the crop itself, not of a view of 224.
    config.views.local.blur_sigma = tuple(sigma * 224 / 96 for sigma in (0.1, 2.0))
    config.optim.update(
        name='sgd',
        learning_rate=0.01,
        scale_with_batch=False,
        weight_decay=1e-4,
        warmup_epochs=0.0,
        final_factor=0.0,
    )
    return config


def small(config):
    """For configs/quickstart.py."""
    local = config.views.local.area
    base.small(config, local_size=66)  # the smallest whose last map is 3 x 3: XLA is slow on 2 x 2
    config.views.local.area = local
