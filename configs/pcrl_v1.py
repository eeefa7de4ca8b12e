"""PCRL (arXiv:2109.04379) as its released code trains it, on ChestX-ray14 with a ResNet-18.

  python main.py --config=configs/pcrl_v1.py --config.data.manual_dir=DIR

The released code, an improved version of the paper's by its own account: channels of the deepest map are
scaled where the paper takes an outer product. Its recipe is for this data set and a batch of 64 on four
GPUs, which four groups of BatchNorm stand for; without them: --config.method.norm_groups=1
Its targets of mixed images are bare crops, half of the time mirrored against the input; as probably meant:
--config.method.aligned_targets=True
It trains 240 epochs (--config.total_epochs=240), and stops a longer run in epoch 242.
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    config.model.context = False
    config.method = ConfigDict(
        dict(
            name='pcrl_v1',
            widths=(128, 128),
            queue=16384,
            momentum=0.999,
            temperature=0.2,
            norm_groups=4,
            aligned_targets=False,
        )
    )
    for view in (config.views.first, config.views.second):
        view.update(
            area=(0.2, 1.0),
            rotation=10.0,
            jitter_probability=1.0,
            blur_probability=0.5,
            solarise_probability=0.0,
        )
    config.optim.update(
        name='sgd',
        learning_rate=1e-3,
        scale_with_batch=False,
        weight_decay=1e-4,
        warmup_epochs=0.0,
        final_factor=0.0,
    )
    return config


def small(config):
    """For configs/quickstart.py."""
    base.small(config, queue=1024, momentum=0.99)
