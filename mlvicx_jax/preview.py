"""`main.py --preview=views.png`: the views of a recipe, drawn as the training step draws them."""

import jax
import numpy as np

from mlvicx_jax import methods
from mlvicx_jax.data import pipeline
from mlvicx_jax.data.opening import open_data
from mlvicx_jax.data.preview import write_preview
from mlvicx_jax.terminal import say

ROWS, DRAWS = 6, 2  # images, and pairs of views of each


def preview(config, path) -> int:
    """Writes a sheet of the first training images, each beside its views."""
    method = methods.create(config)
    stream = pipeline.train_batches(open_data(config).splits['train'], ROWS, config.seed)
    examples = next(stream)
    batch = {name: examples[name] for name in ('image', 'labels')}
    stream.close()
    draw = jax.jit(lambda key: method.views(jax.random.split(key, ROWS), batch))
    views, titles = [], []
    for number in range(DRAWS):
        for name, view in draw(jax.random.key(config.seed + number)).items():
            if view.ndim == 4:
                views.append(np.asarray(view))
                titles.append(f'{name}, draw {number + 1}')
    write_preview(path, batch['image'], views, titles)
    say(f'wrote {path}')
    return 0
