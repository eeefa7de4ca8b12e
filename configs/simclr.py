"""SimCLR (arXiv:2002.05709) as its released code trains it, on ChestX-ray14 with a ResNet-18.

  python main.py --config=configs/simclr.py --config.data.manual_dir=DIR

Learning rate by the code's default, 0.3 x batch / 256: 0.075 at a batch of 64. For small batches its README
advises 0.075 x sqrt(batch), eight times as much:
  --config.optim.learning_rate=0.6 --config.optim.scale_with_batch=False
Weight decay of its flags and of the README's command; the paper and the later TensorFlow 2 code have 1e-6:
--config.optim.weight_decay=1e-6
Three layers in the projector, as the code has them; the paper's two: --config.method.widths='(512, 128)'
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.data.name = 'nih_chestxray14'
    config.model.update(context=False, zero_init_residual=True)
    config.method = ConfigDict(dict(name='simclr', widths=(512, 512, 128), temperature=0.1))
    for view in (config.views.first, config.views.second):
        view.update(brightness=0.8, contrast=0.8, blur_probability=0.5, solarise_probability=0.0)
    config.optim.update(
        name='lars_simclr', learning_rate=0.3, weight_decay=1e-4, warmup_epochs=10.0, final_factor=0.0
    )
    return config


def small(config):
    """For configs/quickstart.py."""
    base.small(config, widths=(128, 128, 128))
