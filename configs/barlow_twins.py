"""Barlow Twins (arXiv:2103.03230) as its released code trains it, on ChestX-ray14 with a ResNet-18.

  python main.py --config=configs/barlow_twins.py --config.data.manual_dir=DIR

Learning rate by the code's rule, 0.2 x batch / 256, and 0.0048 x batch / 256 for BatchNorm's parameters. Its
authors' search at 300 epochs (issue 7) points to about 1.0 x batch / 256 at a batch of 64:
  --config.optim.learning_rate=1.0 --config.optim.vector_factor=0.0048
Weight decay and off_diagonal are the code's; the paper states 1.5e-6 and 0.005:
  --config.optim.weight_decay=1.5e-6 --config.method.off_diagonal=0.005
A batch of 64 can not decorrelate 8192 features: the loss stays above 3251.
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    config.model.update(context=False, zero_init_residual=True)
    config.method = ConfigDict(dict(name='barlow_twins', widths=(8192, 8192, 8192), off_diagonal=0.0051))
    config.optim.update(
        name='lars', learning_rate=0.2, weight_decay=1e-6, warmup_epochs=10.0, vector_factor=0.0048 / 0.2
    )
    return config


def small(config):
    """For configs/quickstart.py."""
    base.small(config, widths=(512, 512, 512))
