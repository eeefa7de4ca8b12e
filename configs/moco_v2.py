"""MoCo v2 (arXiv:2003.04297) as its released code trains it, on ChestX-ray14 with a ResNet-18.

  python main.py --config=configs/moco_v2.py --config.data.manual_dir=DIR

Learning rate by the authors' linear rule, 0.03 x batch / 256, and their advice for a batch of 64: on two
GPUs (issue 47), which two groups of BatchNorm stand for. Read to the letter, the code's default would be
0.03 at any batch: --config.optim.scale_with_batch=False
The queue of 65,536 keys is most of an epoch here and a twentieth of one of ImageNet: about a third of the
queries meet their own key of the epoch before among the negatives. In ImageNet's proportion:
--config.method.queue=4096
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    config.model.context = False
    config.method = ConfigDict(
        dict(name='moco_v2', widths=(512, 128), queue=65536, momentum=0.999, temperature=0.2, norm_groups=2)
    )
    base.moco_v2_views(config)
    config.optim.update(name='sgd', learning_rate=0.03, weight_decay=1e-4, warmup_epochs=0.0, final_factor=0.0)
    return config


def small(config):
    """For configs/quickstart.py."""
    base.small(config, widths=(128, 128), queue=1024, momentum=0.99)
