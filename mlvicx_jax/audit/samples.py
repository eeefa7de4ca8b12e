"""Sheets of samples: what the films of a split and of each of its labels look like."""

import pathlib
import re

import cv2
import numpy as np
import tensorflow_datasets as tfds
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlvicx_jax.data.films import read_film
from mlvicx_jax.data.source import RadiographSet, Split
from mlvicx_jax_datasets import radiograph

COLUMNS, ROWS = 6, 4
_TILE, _GAP, _CAPTION = 256, 4, 56  # pixels: a film's side, between films, the text under one


def write_sheets(
    data: RadiographSet, folder: pathlib.Path, seed: int = 0, patient_ids: bool = False
) -> list[pathlib.Path]:
    """Writes <set>_<split>_<label or any>.png, each of up to 24 films drawn with `seed`.

    Boxes are drawn with their labels, and the outline of a mask; on the sheet of a label, those
    of that label are in another colour. Patient ids are written under the films where they are asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    box_names = tfds.builder_from_directory(data.folder).info.features['bboxes']['label'].names
    rng, written = np.random.default_rng(seed), []
    for split in data.splits.values():
        for label in (None, *data.label_names):
            of_label = (
                np.arange(len(split))
                if label is None
                else np.flatnonzero(split.labels[:, data.label_names.index(label)])
            )
            if not len(of_label):
                continue
            chosen = np.sort(rng.permutation(of_label)[: COLUMNS * ROWS])
            name = re.sub(r'[^\w.-]+', '_', f'{data.name}_{split.name}_{label or "any"}')
            path = folder / f'{name}.png'
            title = f'{data.name} {split.name}: {label or "any"}, {len(chosen)} of {len(of_label)} images'
            _draw(split, chosen, data.label_names, box_names, label, title, patient_ids).savefig(path)
            written.append(path)
    return written


def _draw(
    split: Split,
    chosen: np.ndarray,
    label_names: tuple[str, ...],
    box_names: list[str],
    label: str | None,
    title: str,
    patient_ids: bool,
) -> Figure:
    rows, height, width = -(-len(chosen) // COLUMNS), _TILE + _CAPTION, _TILE + _GAP
    sheet = np.full((rows * height, COLUMNS * width, 3), 255, np.uint8)
    figure = Figure(figsize=(COLUMNS * width / 100, (rows * height + 30) / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, rows * height / (rows * height + 30)))
    axes.axis('off')
    figure.text(0.004, 0.995, title, va='top', fontsize=12)
    for k, i in enumerate(chosen):
        top, left = k // COLUMNS * height, k % COLUMNS * width
        example = split.record(i)
        tile = cv2.cvtColor(radiograph.resize(read_film(split, i), _TILE), cv2.COLOR_GRAY2RGB)
        if 'mask' in example:
            _outline(tile, example['mask'], label_names, label)
        sheet[top : top + _TILE, left : left + _TILE] = tile
        boxes = example['bboxes']
        for (ymin, xmin, ymax, xmax), number in zip(boxes['bbox'], boxes['label']):
            colour = 'orange' if label in (None, box_names[number]) else 'deepskyblue'
            axes.add_patch(
                Rectangle(
                    (left + xmin * _TILE, top + ymin * _TILE),
                    (xmax - xmin) * _TILE,
                    (ymax - ymin) * _TILE,
                    fill=False,
                    edgecolor=colour,
                    linewidth=1,
                )
            )
            axes.text(
                left + xmin * _TILE,
                top + ymin * _TILE - 2,
                box_names[number],
                color=colour,
                fontsize=6,
                va='bottom',
                bbox={'facecolor': 'black', 'alpha': 0.6, 'linewidth': 0, 'pad': 0.8},
            )
        said = [name for name, on in zip(label_names, split.labels[i]) if on]
        age = f' {split.age[i]} y' if split.age[i] >= 0 else ''
        patient = f'patient {split.patient_ids[i]}  ' if patient_ids else ''
        axes.text(
            left + 3,
            top + _TILE + 4,
            '\n'.join(
                (
                    _cut(str(split.image_ids[i]), 42),
                    _cut(f'{patient}{split.view[i]} {split.sex[i]}{age}', 42),
                    *_wrap(said, 42),
                )
            ),
            fontsize=6.5,
            va='top',
            linespacing=1.2,
        )
    axes.imshow(sheet, interpolation='none', aspect='auto', extent=(0, sheet.shape[1], sheet.shape[0], 0))
    return figure


def _outline(tile: np.ndarray, png: bytes, label_names: tuple[str, ...], label: str | None) -> None:
    """Draws around each region of a mask: bit k is label k, or a single structure is 1."""
    mask = radiograph.decode_image(png, 'mask')
    for bit in range(8):
        region = (mask >> bit & 1).astype(np.uint8)
        if not region.any():
            continue
        region = cv2.resize(region, (_TILE, _TILE), interpolation=cv2.INTER_NEAREST)
        of_label = label is None or label_names[bit : bit + 1] == (label,)
        contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, contours, -1, (255, 120, 120) if of_label else (90, 160, 200), 1)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f'...{text[3 - length :]}'


def _wrap(words: list[str], length: int) -> list[str]:
    lines = ['']
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) + 2 > length:
            lines.append('')
        lines[-1] += (', ' if lines[-1] else '') + word
    return lines[:2] if len(lines) <= 2 else [lines[0], f'{lines[1]}, ...']
