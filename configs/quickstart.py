"""A method in small on the embedded phantom: minutes on two CPU cores, no download.

  python main.py --config=configs/quickstart.py           MLVICX
  python main.py --config=configs/quickstart.py:byol      or any other recipe of this folder

One budget, encoder, optimiser and mild views for all methods; the objective, its heads (narrower) and
blur are the method's own, and what is smaller about a method stands in its recipe, `small`. What is
not the paper's here was chosen on a phantom of another seed (docs/results.md): milder views, and no
context bottlenecks, which so short a training does not pay for (`--config.model.context=True` puts
them in). The probes read a grid, `models/readout.py`.
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
    base.duration(config, 'total', steps=400)
    config.data.name = 'phantom_cxr'
    config.data.options.update(patients=800, test_patients=2000)
    config.data.stored_size = 128
    config.data.image_size = 96
    config.model.update(width=16, context=False)
    for view in config.views.values():
        view.update(brightness=0.2, contrast=0.2, solarise_probability=0.0)
        if view.area[0] < 1:  # a method that shows the whole frame keeps its own geometry
            view.update(flip=0.0, rotation=0.0)
        if view.area[0] < view.area[1] == 1:  # a method with small crops keeps them small
            view.area = (0.6, 1.0)
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
    base.duration(config, 'eval_every', steps=200)
    config.eval.update(split='test', readout='grid')
    base.duration(config.checkpoint, 'every', steps=200)
    return config
