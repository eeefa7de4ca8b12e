"""A grid of runs, methods x sets x protocols x fractions x seeds, and the paper's Tables I to IV from it.

  python main.py --config=configs/tables.py --workdir=grid             on the embedded phantom, in small
  python main.py --config=configs/tables.py:ablation --workdir=grid    the same with Table IV's two ablations
  python main.py --config=configs/tables.py:paper --workdir=grid       the paper's, in full

One command pretrains, evaluates and writes <workdir>/tables/; killed at any moment, the same command goes on.
The paper's sets are prepared before: mlvicx prepare. For encoders that are trained already: a
recipe of one's own with `grid.inits`, such as {'mlvicx': 'workdirs/mlvicx_{seed}'}.
"""

from ml_collections import ConfigDict

# In the order of the paper's rows; its name of a row is the name of a recipe.
METHODS = (
    'simclr',
    'moco_v2',
    'byol',
    'simsiam',
    'barlow_twins',
    'vicreg',
    'inter_moco',
    'pcrl_v1',
    'caid',
    'pcrl_v2',
    'mlvicx',
)
# Table IV: its rows, and the methods of the grid that fill them.
ABLATION = dict(multi_level_only='mlvicx_multi_level_only', global_only='mlvicx_global_only', both='mlvicx')


def get_config(which='phantom'):
    """`which`: phantom, ablation or paper."""
    config = ConfigDict()
    config.task = 'tables'
    config.grid = ConfigDict(
        dict(
            # Encoders that the grid trains: a recipe, and flags of main.py behind it.
            pretrain=ConfigDict(),
            # Others: config.init, '' for random weights, flags behind it; {seed} stands for the
            # seed of pretraining.
            inits=ConfigDict(dict(random='')),
            # A recipe with its options and flags; protocol, fraction, seed and init are the grid's.
            sets=ConfigDict(),
            protocols=('frozen', 'finetune'),
            fractions=ConfigDict(dict(classify=(0.01, 0.1, 0.3, 1.0), segment=(0.3, 1.0))),
            # Of downstream runs: the labelled part, the new weights, the order of the images.
            seeds=(0, 1, 2),
            # Of pretraining: one for all of `seeds`, or one for each; () takes those themselves.
            pretrain_seeds=(),
            overrides='',  # flags for every run, such as '--config.data.data_dir=DIR'
            parallel=1,
        )
    )  # runs at a time; they share the devices
    # The method that others are tested against, and which methods make up Table IV.
    config.tables = ConfigDict(dict(reference='mlvicx', ablation=ConfigDict(ABLATION)))

    if which in ('phantom', 'ablation'):
        config.grid.fractions.update(classify=(0.01, 0.1, 1.0), segment=(1.0,))
        config.grid.pretrain.supervised = 'configs/quickstart.py:supervised'
        config.grid.pretrain.mlvicx = 'configs/quickstart.py:mlvicx'
        config.grid.sets.phantom = 'configs/classify.py:dataset=phantom_cxr,size=small'
        config.grid.sets.phantom_masks = (
            'configs/segment.py:dataset=phantom_cxr,structures=heart+Pneumothorax,size=small'
        )
    elif which == 'paper':
        # Ten runs of each cell, as its t-test needs, from one pretraining of each method.
        config.grid.update(seeds=tuple(range(10)), pretrain_seeds=(0,))
        for name in METHODS:
            config.grid.pretrain[name] = f'configs/{name}.py'
        for name in ('nih_chestxray14', 'vinbig_cxr', 'rsna_pneumonia'):
            config.grid.sets[name] = f'configs/classify.py:dataset={name}'
        config.grid.sets.siim_pneumothorax = 'configs/segment.py:dataset=siim_pneumothorax'
    else:
        raise ValueError(f'configs/tables.py:{which}: expected phantom, ablation or paper')
    if which != 'phantom':
        for heads in ('multi_level', 'global'):
            config.grid.pretrain[f'mlvicx_{heads}_only'] = (
                f'{config.grid.pretrain.mlvicx} --config.method.loss_heads={heads}'
            )
    return config
