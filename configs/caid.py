"""CAiD (arXiv:2204.07344) as its released code trains it, on ChestX-ray14 with a ResNet-18.

  python main.py --config=configs/caid.py --config.data.manual_dir=DIR

Of the bases that the paper names, the code has MoCo v2; see configs/moco_v2.py for the readings of the
learning rate, the queue and the BatchNorm groups (CAiD itself ran 64 images a GPU), the same here. The code
trains a ResNet-50 for 800 epochs with a batch of 256; its head's hidden layer is as wide as that encoder's
output, so 512 here.
It does not mirror the target with the input; as probably meant: --config.method.flip_target=True
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    config.model.context = False
    config.method = ConfigDict(
        dict(
            name='caid',
            widths=(512, 128),
            queue=65536,
            momentum=0.999,
            temperature=0.2,
            norm_groups=2,
            restoration=10.0,
            flip_target=False,
        )
    )
    base.moco_v2_views(config)
    config.optim.update(name='sgd', learning_rate=0.03, weight_decay=1e-4, warmup_epochs=0.0, final_factor=0.0)
    return config


def small(config):
    """For configs/quickstart.py."""
    base.small(config, widths=(128, 128), queue=1024, momentum=0.99)
