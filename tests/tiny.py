"""configs/mlvicx.py shrunk to seconds: python main.py --config=tests/tiny.py[:released]"""

from configs import mlvicx


def get_config(argument=''):
    """The recipe that `argument` names, on a few phantoms, with a narrow encoder and expander."""
    config = mlvicx.get_config(argument)
    config.seed = 3  # not 0, the seed of the evaluation's own batches
    config.batch_size = 8
    config.total_steps = 12
    config.data.name = 'phantom_cxr'
    config.data.options.patients = 25
    config.data.stored_size = 96
    config.data.image_size = 80  # the last map is 3 x 3; XLA is slow on 2 x 2
    config.data.num_threads = 1
    config.model.width = 4
    config.method.widths = (16, 16, 16)
    config.log_every_steps = 1
    config.eval_every_steps = 0
    config.eval.update(split='test', batch_size=8)
    config.checkpoint.update(every_steps=6, keep_last=3)
    return config
