"""Classification with few labels, from a pretrained encoder: frozen or fine-tuned.

  python main.py --config=configs/classify.py:dataset=nih_chestxray14,protocol=frozen,fraction=0.01 \\
      --config.init=workdirs/mlvicx --config.data.manual_dir=DIR
  python main.py --config=configs/classify.py:size=small,fraction=0.1 --config.init=workdirs/quickstart

frozen: the encoder's features once, then a linear layer on them, an L-BFGS logistic probe and kNN.
finetune: everything trains. `config.init` is a workdir, an exported folder or a file of torchvision's;
empty it is a random encoder. `--config.model.context=False` drops the context bottlenecks.

Batch, learning rate and patience are the paper's (section IV). It gives NIH's 1e-5 with "we fine-tune"; the
frozen layer is trained with it, too, and hardly moves: its probabilities stay around one half, so that its
AUROC can be read and its calibration error says nothing. The paper names neither optimiser, schedule,
augmentation nor the greatest number of epochs: Adam at a constant rate; the views of
configs/supervised.py; 100 epochs.
"""

from configs import base, supervised

# The paper's where they are not those of `get_config`; options of the set's builder.
SETS = {'nih_chestxray14': dict(batch=64, rate=1e-5), 'phantom_cxr': dict(batch=64, options=dict(patients=800))}


def get_config(argument=''):
    """Options, separated by commas: dataset=, protocol=, fraction=, labels=, readout=, size=small.

    labels: their number, checked against the data; by default as many as it has.
    """
    options = base.read_options(
        'configs/classify.py',
        argument,
        dict(
            dataset='nih_chestxray14',
            protocol='finetune',
            fraction='1',
            labels='0',
            readout='pooled',
            size='full',
        ),
        dict(dataset=base.data_sets(), protocol=('frozen', 'finetune'), size=('full', 'small')),
    )
    config = supervised.get_config()
    own = SETS.get(options['dataset'], {})
    config.task = 'classify'
    config.protocol = options['protocol']
    config.batch_size = own.get('batch', 16)
    config.data.name = options['dataset']
    config.data.options.update(own.get('options', {}))
    config.data.labelled.share = float(options['fraction'])
    config.method.labels = int(options['labels'])
    config.method.readout = options['readout']
    config.model.context = True
    config.optim.update(learning_rate=own.get('rate', 1e-3), final_factor=1.0)
    base.duration(config, 'total', epochs=100)
    base.duration(config, 'eval_every', epochs=1)
    config.early_stopping.patience = 10
    base.duration(config, 'log_every', steps=20)
    if options['size'] == 'small':
        small(config)
    return config


def small(config):
    """The size of configs/quickstart.py, whose encoders fit."""
    base.small(config)
    config.batch_size = 64
    config.data.stored_size = 128
    config.data.image_size = 96
    config.model.update(width=16, context=False)
    config.optim.learning_rate = 1e-2 if config.protocol == 'frozen' else 1e-3
    # Counted in steps: an epoch of 1 % of the phantom is one.
    base.duration(config, 'total', steps=200)
    base.duration(config, 'eval_every', steps=20)
