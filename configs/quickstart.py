"""A method in small on the embedded phantom: minutes on two CPU cores, no download.

  python main.py --config=configs/quickstart.py           MLVICX
  python main.py --config=configs/quickstart.py:byol      or any other recipe of this folder

One budget, encoder, optimiser and crop for all methods; the objective, its heads (narrower) and its
other augmentations are the method's own. What is smaller about a method stands in its recipe, `small`.
"""

import importlib

from configs import base


def get_config(method='mlvicx'):
    """`method`: the name of a method's recipe."""
    if method != 'mlvicx' and method not in (known := base.methods()):
        raise ValueError(f'configs/quickstart.py:{method}: expected one of {", ".join(known)}')
    recipe = importlib.import_module(f'configs.{method}')
    config = recipe.get_config()
    getattr(recipe, 'small', base.small)(config)
    config.batch_size = 64
    base.duration(config, 'total', steps=600)
    config.data.name = 'phantom_cxr'
    config.data.options.patients = 800
    config.data.stored_size = 128
    config.data.image_size = 96
    config.model.width = 16
    base.duration(config.optim, 'warmup', epochs=1)
    config.optim.update(
        name='adamw',
        learning_rate=2e-3,
        scale_with_batch=False,
        weight_decay=1e-4,
        final_factor=0.001,
        vector_factor=1.0,
        constant=(),
    )
    base.duration(config, 'log_every', steps=20)
    base.duration(config, 'eval_every', steps=150)
    config.eval.split = 'test'
    base.duration(config.checkpoint, 'every', steps=150)
    return config
