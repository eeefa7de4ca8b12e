"""`main.py --preview=views.png`: the views of a recipe, drawn as the training step draws them."""

import os
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.figure import Figure

from mlvicx_jax import methods, tasks
from mlvicx_jax.data import pipeline
from mlvicx_jax.data.opening import open_data
from mlvicx_jax.terminal import say

ROWS, DRAWS = 6, 2  # images, and pairs of views of each
PANEL_INCHES, DPI = 2.0, 120  # 240 px a panel: a 224 px view is shown about one to one


def preview(config, path) -> int:
    """Writes a sheet of the first training images, each beside its views."""
    task = tasks.find(config)
    config = task.settle(config)
    data = open_data(config)
    method = methods.create(task.settle_with(config, data))
    stream = pipeline.train_batches(data.splits['train'], ROWS, config.seed)
    batch = next(stream)
    del batch['record']
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


def write_preview(
    path: str | os.PathLike, images: np.ndarray, views: Sequence[np.ndarray], titles: Sequence[str]
) -> None:
    """Writes a PNG with a row per image: the original, then its views.

    Black and white are the ends of the range in every panel, so that a darker view looks darker.

    Args:
        path: the PNG to write; its folder is made.
        images: the originals, uint8 [n, H, W, 1].
        views: one array [n, size, size, 1] in [0, 1] per column, in the order of the columns.
        titles: the caption of each column, such as the name of the recipe that drew it.

    Raises:
        ValueError: captions or rows do not match the views.
    """
    columns: list[np.ndarray] = [np.asarray(images) / 255, *(np.asarray(view, np.float32) for view in views)]
    if len(titles) != len(views) or {len(column) for column in columns} != {len(images)}:
        raise ValueError(
            f'{len(titles)} titles for {len(views)} views of {[len(column) for column in columns]} '
            'images (the first: the originals): give a title per view and a view per image'
        )
    shape = len(images), len(columns)
    header = 0.4  # inches above the first row
    width, height = PANEL_INCHES * shape[1], PANEL_INCHES * shape[0] + header
    figure = Figure(figsize=(width, height), dpi=DPI)
    panels = figure.subplots(*shape, squeeze=False)
    figure.subplots_adjust(0, 0, 1, 1 - header / height, wspace=0.03, hspace=0.03)
    for i, (title, column) in enumerate(zip(['original', *titles], columns)):
        caption = f'{title}\n{column.shape[2]} x {column.shape[1]} px'
        panels[0, i].set_title(caption, fontsize=9, pad=3)
        for panel, image in zip(panels[:, i], column):
            panel.imshow(image[..., 0], cmap='gray', vmin=0, vmax=1)
            panel.set_axis_off()
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, format='png')
