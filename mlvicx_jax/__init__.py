"""Self-supervised pretraining for chest radiographs with multi-level variance and covariance."""

import os

__version__ = '0.1.0'

# On CPUs XLA reports two of its own tuning flags as missing processor features, a page for each program
# that is found again. It reads this when jax is imported; what goes wrong is raised in Python all the same.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
