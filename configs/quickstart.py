"""MLVICX in small on the embedded phantom: minutes on two CPU cores, no download.

  python main.py --config=configs/quickstart.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.batch_size = 64
    config.total_steps = 600
    config.data.options = ConfigDict(dict(patients=800))
    config.data.stored_size = 128
    config.data.image_size = 96
    config.model.width = 16
    config.method = ConfigDict(dict(
        name='mlvicx', loss_heads='both', aggregation='concat', widths=(512, 512, 512),
        last_norm=False, multi_level_weight=1.0, alpha=25.0, beta=25.0, gamma=1.0,
        inv_reduce='mean', var_reduce='mean'))
    for view in (config.views.first, config.views.second):
        view.area = (0.3, 1.0)
    config.optim.update(name='adamw', learning_rate=2e-3, scale_with_batch=False,
                        weight_decay=1e-4, warmup_epochs=1.0)
    config.log_every_steps = 20
    config.eval_every_steps = 150
    config.eval.split = 'test'
    config.checkpoint.every_steps = 150
    return config
