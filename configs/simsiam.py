"""SimSiam (arXiv:2011.10566) as its released code trains it, on ChestX-ray14 with a ResNet-18.

  python main.py --config=configs/simsiam.py --config.data.manual_dir=DIR

The predictor's learning rate does not decay: the paper's best reading (Table 1), and that of the command in
the code's README, though its flag is off by default: --config.optim.constant='()'
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    config.model.update(context=False, zero_init_residual=True)
    config.method = ConfigDict(dict(name='simsiam', projector=(512, 512, 2048), predictor=(512, 2048)))
    base.moco_v2_views(config)
    config.optim.update(
        name='sgd',
        learning_rate=0.05,
        weight_decay=1e-4,
        warmup_epochs=0.0,
        final_factor=0.0,
        constant=('predictor',),
    )
    return config


def small(config):
    """For configs/quickstart.py."""
    base.small(config, projector=(128, 128, 512), predictor=(128, 512))
