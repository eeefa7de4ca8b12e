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

# Batch, learning rate, number of labels.
SETS = {
    'nih_chestxray14': (64, 1e-5, 15),
    'vinbig_cxr': (16, 1e-3, 15),
    'rsna_pneumonia': (16, 1e-3, 2),
    'siim_pneumothorax': (16, 1e-3, 1),  # the paper only segments it
    'phantom_cxr': (64, 1e-3, 9),
    'image_folder_cxr': (16, 1e-3, 0),  # labels: as many as yours has
}


def get_config(argument=''):
    """Options, separated by commas: dataset=, protocol=, fraction=, labels=, readout=, size=small."""
    options = base.read_options(
        'configs/classify.py',
        argument,
        dict(
            dataset='nih_chestxray14',
            protocol='finetune',
            fraction='1',
            labels='',
            readout='pooled',
            size='full',
        ),
        dict(dataset=SETS, protocol=('frozen', 'finetune'), size=('full', 'small')),
    )
    config = supervised.get_config()
    batch, rate, labels = SETS[options['dataset']]
    config.task = 'classify'
    config.protocol = options['protocol']
    config.batch_size = batch
    config.data.name = options['dataset']
    if options['dataset'] == 'phantom_cxr':
        config.data.options.patients = 800
    elif options['dataset'] == 'image_folder_cxr':
        config.data.options.update(title='classified', table='')
    config.data.labelled.share = float(options['fraction'])
    config.method.labels = int(options['labels'] or labels)
    config.method.readout = options['readout']
    config.model.context = True
    config.optim.update(learning_rate=rate, final_factor=1.0)
    config.total_epochs = 100
    config.eval_every_steps = 0
    config.eval_every_epochs = 1
    config.early_stopping.patience = 10
    config.checkpoint.every_steps = 1000
    config.log_every_steps = 20
    if options['size'] == 'small':
        small(config)
    return config


def small(config):
    """The size of configs/quickstart.py, whose encoders fit."""
    config.batch_size = 64
    config.data.stored_size = 128
    config.data.image_size = 96
    config.model.update(width=16, context=False)
    config.views.first.update(area=(0.3, 1.0), rotation=0.0)
    config.optim.learning_rate = 1e-2 if config.protocol == 'frozen' else 1e-3
    # Counted in steps: an epoch of 1 % of the phantom is one.
    config.total_steps = 200
    config.eval_every_steps, config.eval_every_epochs = 20, 0
