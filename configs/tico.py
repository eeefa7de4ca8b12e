"""TiCo (arXiv:2206.10698) on ChestX-ray14 with a ResNet-18.

  python main.py --config=configs/tico.py --config.data.manual_dir=DIR

Its authors released no code. beta 0.9, rho 20, the heads and BYOL's views and optimiser are those of Lightly's
version (lightly/loss/tico_loss.py; learning rate 0.2 x batch / 256, weight decay 1.5e-6), which quotes the
paper; the paper's own table of settings was not compared. The loss begins near 1 + rho / r: r is 256.
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    config.model.context = False
    config.method = ConfigDict(
        dict(name='tico', widths=(4096, 256), covariance_momentum=0.9, covariance_weight=20.0, momentum=0.99)
    )
    # The views are those of base.py: VICReg's are BYOL's.
    config.optim.update(
        name='lars', learning_rate=0.2, weight_decay=1.5e-6, warmup_epochs=10.0, final_factor=0.0
    )
    return config


def small(config):
    """For configs/quickstart.py."""
    base.small(config, widths=(512, 64))
