"""What every number of a downstream run carries: what it was made with, and on which images."""


def about(config, data, proof: dict | None) -> dict:
    """The first lines of its results.json.

    Args:
        proof: which encoder it began with, `export.initial.proof`; None for a random one.
    """
    train = data.splits['train']
    return {
        'protocol': config.protocol, 'dataset': data.name, 'share': config.data.labelled.share,
        'labelled_images': len(train), 'labelled_hash': train.hash, 'seed': config.seed,
        'init': config.init, 'init_proof': proof, 'context': config.model.context,
        **{f'data/{name}_hash': split.hash for name, split in data.splits.items()}}
