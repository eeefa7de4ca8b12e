"""VICReg (arXiv:2105.04906) as its released code trains it, on ChestX-ray14 with a ResNet-18.

  python main.py --config=configs/vicreg.py --config.data.manual_dir=DIR

The code's readings: views differ (blur 1.0 / 0.1, solarise 0 / 0.2; the paper's appendix C.1 has 0.5 and 0.1 in
both: --config.views.first.blur_probability=0.5 ...); the invariance is averaged over features and the two
variance terms are halved (the paper sums both: --config.method.inv_reduce=sum --config.method.var_reduce=sum);
the last learning rate is a thousandth of the peak (the paper's is 0.002).

Learning rate by the code's rule, 0.2 x batch / 256. Its authors' own study of the batch size (appendix
C.4) would ask for about 0.8 x batch / 256 at a batch of 64: --config.optim.learning_rate=0.8
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    config.model.update(context=False, zero_init_residual=True)
    config.method = ConfigDict(
        dict(
            name='vicreg',
            widths=(8192, 8192, 8192),
            alpha=25.0,
            beta=25.0,
            gamma=1.0,
            inv_reduce='mean',
            var_reduce='mean',
        )
    )
    config.optim.update(name='lars', learning_rate=0.2, weight_decay=1e-6, warmup_epochs=10.0)
    return config


def small(config):
    """For configs/quickstart.py."""
    base.small(config, widths=(512, 512, 512))
