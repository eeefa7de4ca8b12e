"""Segmentation by a U-Net on a pretrained ResNet-18, frozen or fine-tuned (arXiv:2403.11504, Table III).

  python main.py --config=configs/segment.py --config.init=W --config.data.manual_dir=DIR
  python main.py --config=configs/segment.py:protocol=frozen,fraction=0.3 --config.init=W
  python main.py --config=configs/segment.py:dataset=phantom_cxr,structures=heart+lungs,size=small
  python main.py --config=configs/segment.py:dataset=image_folder_cxr --config.data.manual_dir=DIR

The paper states the data (SIIM-ACR with as many images without a pneumothorax as with one, 20 % of them
validation), batches of 32, a learning rate of 3e-4, a patience of 10 epochs, and 30 and 100 % of the training
data. SIIM-ACR has no test masks that could be had: here 20 % of the images are test and 20 % of the others
validation, so that all of the training data is 64 % of the images. The paper is silent on the rest, chosen
here: Adam without weight decay at a constant rate, at most 100 epochs, Dice + cross-entropy, views of 224 px
with mild augmentation (a crop that cut the structure away, as in pretraining, would teach little).
"""

from ml_collections import ConfigDict

from configs import base

# What is segmented of a set where nothing is named, and options of its builder.
SETS = {
    'siim_pneumothorax': ('Pneumothorax', dict(balanced=True)),
    'phantom_cxr': ('heart+lungs', dict(patients=800)),
    'image_folder_cxr': ('mask', dict(masks=True)),
}


def get_config(argument=''):
    """Options, separated by commas, with their defaults:

    dataset=siim_pneumothorax, structures=NAME+NAME (those of SETS), protocol=finetune (or frozen),
    fraction=1.0 of the training images, size=full (or small: minutes on two CPU cores).
    """
    options = base.read_options(
        'configs/segment.py',
        argument,
        dict(dataset='siim_pneumothorax', structures='', protocol='finetune', fraction='1.0', size='full'),
        dict(dataset=base.data_sets(), protocol=('finetune', 'frozen'), size=('full', 'small')),
    )
    structures, builder_options = SETS.get(options['dataset'], ('', {}))
    structures = options['structures'] or structures
    if not structures:
        raise ValueError(f'configs/segment.py:{argument}: name what is segmented, structures=NAME+NAME')

    config = base.get_config()
    config.task = 'segment'
    config.protocol = options['protocol']
    config.batch_size = 32
    base.duration(config, 'total', epochs=100)
    config.data.name = options['dataset']
    config.data.options = ConfigDict(builder_options)
    config.data.validation_fraction = 0.2
    config.data.target = tuple(structures.split('+'))
    config.data.labelled.share = float(options['fraction'])
    config.method = ConfigDict(dict(name='segmentation'))
    config.views.first.update(
        area=(0.5, 1.0), rotation=10.0, brightness=0.2, contrast=0.2, blur_probability=0.0
    )
    del config.views.second
    config.optim.update(
        name='adamw',
        learning_rate=3e-4,
        scale_with_batch=False,
        weight_decay=0.0,
        warmup_epochs=0.0,
        final_factor=1.0,
    )
    base.duration(config, 'eval_every', epochs=1)
    config.early_stopping.patience = 10
    if options['size'] == 'small':
        small(config)
    return config


def small(config):
    """The size of configs/quickstart.py, whose encoders fit."""
    config.model.update(width=16, context=False)
    config.data.stored_size = 128
    config.data.image_size = 96
    config.optim.learning_rate = 2e-3
    base.duration(config, 'log_every', steps=20)
    # Counted in steps: an epoch of 10 % of the phantom is four.
    base.duration(config, 'total', steps=200)
    base.duration(config, 'eval_every', steps=40)
