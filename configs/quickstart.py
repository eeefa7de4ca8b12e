"""A method in small on the embedded phantom: minutes on two CPU cores, no download.

  python main.py --config=configs/quickstart.py           MLVICX
  python main.py --config=configs/quickstart.py:byol      or any other recipe of this folder

One budget, encoder, optimiser and mild views for all methods; the objective, its heads (narrower) and
blur are the method's own. What is not the paper's here was chosen on a phantom of another seed
(docs/results.md): milder views, and no context bottlenecks, which so short a training does not pay
for (`--config.model.context=True` puts them in). The probes read a grid, `models/readout.py`.
"""

import importlib

# What is smaller here than in the method's own recipe.
METHOD = {
    'mlvicx': dict(widths=(512, 512, 512), var_reduce='mean'),
    'vicreg': dict(widths=(512, 512, 512)),
    'simclr': dict(widths=(128, 128, 128)),
    'barlow_twins': dict(widths=(512, 512, 512)),
    'supervised': dict(labels=9),  # the phantom's eight findings and No Finding
    'moco_v2': dict(widths=(128, 128), queue=1024, momentum=0.99),
    'inter_moco': dict(queue=1024, momentum=0.99),
    'pcrl_v2': dict(local_size=66),  # the smallest whose last map is 3 x 3: XLA is slow on 2 x 2
    'pcrl_v1': dict(queue=1024, momentum=0.99),
    'caid': dict(widths=(128, 128), queue=1024, momentum=0.99),
    'byol': dict(projector=(512, 64), predictor=(512, 64)),
    'simsiam': dict(projector=(128, 128, 512), predictor=(128, 512)),
}


def get_config(method='mlvicx'):
    """`method`: the name of a recipe."""
    if method not in METHOD:
        raise ValueError(f'configs/quickstart.py:{method}: expected one of {", ".join(METHOD)}')
    config = importlib.import_module(f'configs.{method}').get_config()
    config.method.update(METHOD[method])
    config.batch_size = 64
    config.total_steps = 400
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
    config.optim.update(
        name='adamw',
        learning_rate=2e-3,
        scale_with_batch=False,
        weight_decay=1e-4,
        warmup_epochs=1.0,
        final_factor=0.001,
        vector_factor=1.0,
        constant=(),
    )
    config.log_every_steps = 20
    config.eval_every_steps = 200
    config.eval.update(split='test', readout='grid')
    config.checkpoint.every_steps = 200
    return config
