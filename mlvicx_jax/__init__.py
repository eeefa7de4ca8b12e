"""Self-supervised pretraining for chest radiographs with multi-level variance and covariance."""

__version__ = '0.1.0'
