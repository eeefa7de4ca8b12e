"""Draws runs side by side: loss between its reference levels, std, RankMe and the probe.

python -m benchmarks.curves OUT.png 'label=WORKDIR' ['label=WORKDIR' ...]
"""

import sys

from matplotlib.figure import Figure

from mlvicx_jax.run.metrics import read_metrics

PANELS = (
    ('train/loss', 'loss'),
    ('train/std/global', 'std of an embedding feature'),
    ('train/rankme/global', 'RankMe of the embeddings'),
    ('probe/auroc', 'probe, mean AUROC'),
)


def draw(path: str, runs: dict[str, str]) -> None:
    """Writes a PNG of four panels over training steps; one line for each {label: workdir}."""
    figure = Figure(figsize=(14, 3.6), dpi=110, layout='constrained')
    panels = figure.subplots(1, len(PANELS))
    for number, (label, workdir) in enumerate(runs.items()):
        lines = read_metrics(workdir)
        color = f'C{number % 10}'
        for panel, (key, _) in zip(panels, PANELS):
            points = [(line['step'], line[key]) for line in lines if line.get(key) is not None]
            if points:
                panel.plot(
                    *zip(*points),
                    color=color,
                    lw=1.4,
                    label=label,
                    marker='o' if key == 'probe/auroc' else None,
                    ms=3,
                )
        for key, style in (('probe/auroc_init', ':'), ('probe/auroc_init_uncalibrated', '--')):
            if lines and lines[0].get(key) is not None:
                panels[-1].axhline(lines[0][key], color=color, ls=style, lw=1)
        levels = next((line for line in lines if 'train/level/floor' in line), {})
        for name in ('share_nothing', 'floor'):
            if number == 0 and f'train/level/{name}' in levels:
                value = levels[f'train/level/{name}']
                panels[0].axhline(value, color='0.4', ls='--', lw=1)
                panels[0].annotate(
                    name.replace('_', ' '),
                    (0.99, value),
                    color='0.3',
                    fontsize=8,
                    xycoords=('axes fraction', 'data'),
                    ha='right',
                    va='bottom',
                )
    for panel, (_, title) in zip(panels, PANELS):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel('step')
        panel.grid(alpha=0.3)
    panels[-1].set_title('probe, mean AUROC\n(initial: dotted, uncalibrated: dashed)', fontsize=10)
    panels[0].legend(fontsize=8)
    figure.savefig(path)


if __name__ == '__main__':
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    draw(sys.argv[1], dict(argument.split('=', 1) for argument in sys.argv[2:]))
