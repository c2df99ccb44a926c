"""The defaults of a run whose weights were published by others (experiments.import_weights)."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """The defaults of configs/base.py, to which the import adds the network and its process."""
    return base.base()
