"""The commands: python -m experiments.NAME --FLAG=VALUE ...; python -m experiments lists them."""

from experiments import cli

cli.begin()
