"""BYOL (arXiv:2006.07733) as its released code trains it, on ChestX-ray14 with a ResNet-18.

  python main.py --config=configs/byol.py --config.data.manual_dir=DIR

The code's preset for 300 epochs, learning rate 0.3 x batch / 256; the paper's tables are of its preset for
1000 epochs (0.2, weight decay 1.5e-6, momentum 0.996). The code's own recipe for a ResNet-18 on a small set
takes a far larger rate: --config.optim.learning_rate=2.0

The code adds U(-0.4, 0.4) to the pixels where the brightness here is multiplied by U(0.6, 1.4), as in the
PyTorch versions of BYOL.
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    config.model.update(context=False, zero_init_residual=False)
    config.method = ConfigDict(dict(name='byol', projector=(4096, 256), predictor=(4096, 256), momentum=0.99))
    # The views are those of base.py: VICReg's are BYOL's.
    config.optim.update(name='lars', learning_rate=0.3, weight_decay=1e-6, warmup_epochs=10.0, final_factor=0.0)
    return config


def small(config):
    """For configs/quickstart.py."""
    base.small(config, projector=(512, 64), predictor=(512, 64))
