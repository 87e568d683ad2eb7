"""Assembles hybrid language models from pretrained modules."""

__version__ = "0.1.0"

from hybridize.registration import install

install()
