"""What all recipes share: data, evaluation, checkpoints, logging. Not a recipe itself."""

import importlib
import pathlib

from ml_collections import ConfigDict, config_dict

FOLDER = pathlib.Path(__file__).parent
UNITS = {'steps': int, 'epochs': float, 'examples': int, 'percent': float}  # of durations, percent of the run


def get_config():
    """Every public field and its default; a recipe changes what is its own and adds `method`.

    Durations have a field for each unit, of which one at most is set: total_steps, total_epochs,
    total_examples; none, or 0, means never. `duration` sets one. A unit on the command line takes the
    place of the recipe's.
    """
    config = ConfigDict()
    config.task = 'pretrain'  # or classify, segment: the recipes of those names
    config.seed = 0
    config.batch_size = 64  # global, over all devices
    config.accumulation = 1  # parts that the network sees a batch in; the loss is of the whole
    duration(config, 'total', epochs=300)
    config.dtype = 'float32'  # of activations: float32 or bfloat16; parameters and losses are float32

    config.data = ConfigDict()
    config.data.name = 'phantom_cxr'
    config.data.data_dir = 'data'  # prepared sets lie here
    config.data.manual_dir = config_dict.placeholder(str)  # the set's own download
    config.data.stored_size = 256  # px, side of the prepared images
    config.data.image_size = 224  # px, side of the views
    config.data.options = ConfigDict()  # further options of the set's builder
    config.data.validation_fraction = 0.1  # of the patients of train_val
    config.data.split_seed = 0
    # The share of the training images whose labels are used, drawn with `seed`.
    config.data.labelled = ConfigDict(dict(share=1.0, stratified=False, by_patient=False))
    config.data.target = ()  # structures whose masks are read along
    # Labels that are asked for, () for all; also 'any finding', 'AP view', 'male'.
    config.data.questions = ()
    config.data.within = ''  # only images that have this label
    config.data.num_threads = 4  # that decode, in this process or in each worker
    config.data.num_workers = 0
    config.data.prefetch = 4  # batches
    config.data.resident = 'none'  # training images decoded once, into the memory of host or device

    # ResNet-18 with context bottlenecks.
    config.model = ConfigDict(
        dict(width=64, context=True, reduction=2, zero_init_residual=False, remat=False)
    )  # of the encoder: less memory for more arithmetic, for batches that do not fit
    # Initial encoder: '' for random weights, or a file, an exported folder, the workdir of a run.
    config.init = ''

    # VICReg's two recipes as its code has them (augmentations.py), on one grey channel.
    config.views = ConfigDict()
    config.views.first = ConfigDict(
        dict(
            area=(0.08, 1.0),
            flip=0.5,
            rotation=0.0,
            jitter_probability=0.8,
            brightness=0.4,
            contrast=0.4,
            blur_probability=1.0,
            blur_sigma=(0.1, 2.0),
            solarise_probability=0.0,
        )
    )
    config.views.second = ConfigDict(config.views.first.to_dict())
    config.views.second.blur_probability = 0.1
    config.views.second.solarise_probability = 0.2

    # LARS in VICReg's order (arXiv:2105.04906, main_vicreg.py).
    config.optim = ConfigDict(
        dict(
            name='lars',
            learning_rate=0.2,
            scale_with_batch=True,
            weight_decay=1e-6,
            final_factor=0.001,
            vector_factor=1.0,  # learning rate of biases and BatchNorm over that of matrices
            constant=(),  # parts of the network whose rate stays at its peak after the warm-up
            frozen=(),  # parts of the network that stay as they are; the protocol adds the encoder
        )
    )
    duration(config.optim, 'warmup', epochs=2)  # a tenth of the run at most

    config.watchdog_seconds = 1800.0  # without a new step; then the run ends. 0 = never
    config.max_skipped_steps = 3  # in a row whose loss or gradient is not finite; then the run stops
    duration(config, 'log_every', steps=50)
    duration(config, 'eval_every', steps=5000)  # and at the end
    config.early_stopping = ConfigDict(dict(patience=0))  # evaluations without a better one
    duration(config.early_stopping, 'patience')  # or counted in another unit
    # The probes' films, and the features that they see: pooled, levels or grid.
    config.eval = ConfigDict(dict(split='validation', batch_size=64, max_train_images=5000, readout='pooled'))
    config.checkpoint = ConfigDict(dict(keep_last=2, keep_every=0))  # keep_every: steps
    duration(config.checkpoint, 'every', steps=1000)
    duration(config.checkpoint, 'keep_every')
    return config


def duration(section, name, **count):
    """Sets a duration in one unit, such as duration(config, 'total', steps=600); in none: never."""
    for unit, kind in UNITS.items():
        field = f'{name}_{unit}'
        if field not in section and (name, field) not in (
            ('total', 'total_percent'),
            ('keep_every', 'keep_every_steps'),
        ):
            section[field] = config_dict.placeholder(kind)  # has a type while it is None
        if field in section:
            section[field] = count.get(unit)


def data_sets() -> list[str]:
    """The data sets, by the folders of datasets/."""
    return sorted(
        path.name
        for path in FOLDER.parent.joinpath('datasets').iterdir()
        if path.joinpath('__init__.py').exists()
    )


def methods() -> list[str]:
    """The recipes of this folder that are a method's: each has the name of its method."""
    found = []
    for path in sorted(FOLDER.glob('[!_]*.py')):
        config = importlib.import_module(f'configs.{path.stem}').get_config()
        if config.get('method', {}).get('name') == path.stem:
            found.append(path.stem)
    return found


def small(config, **method):
    """Makes a method's recipe as small as configs/quickstart.py asks; a recipe's own `small` may call it.

    Args:
        method: the fields of `config.method` that are smaller.
    """
    config.method.update(method)
    for view in config.views.values():
        view.update(area=(0.3, 1.0), rotation=0.0)


def read_options(recipe, argument, defaults, choices):
    """The options {name: text} of a recipe's argument 'name=value,name=value'.

    Args:
        recipe: its path, for the message.
        defaults: {name: text} of all options.
        choices: {name: values} of those that have no others.

    Raises:
        ValueError: an option that is none, without a value, or with one that is not known.
    """
    options = dict(defaults)
    for option in filter(None, argument.split(',')):
        name, _, value = option.partition('=')
        if name not in options or not value:
            raise ValueError(
                f'{recipe}:{argument}: {option!r}, expected NAME=VALUE with a name out of {", ".join(options)}'
            )
        options[name] = value
    for name, known in choices.items():
        if options[name] not in known:
            raise ValueError(f'{recipe}:{argument}: {name}={options[name]}, expected one of {", ".join(known)}')
    return options


def moco_v2_views(config):
    """Writes MoCo v2's augmentation of both views (arXiv:2003.04297; facebookresearch/moco)."""
    for view in (config.views.first, config.views.second):
        view.update(area=(0.2, 1.0), blur_probability=0.5, solarise_probability=0.0)
