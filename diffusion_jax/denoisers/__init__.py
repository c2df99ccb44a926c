"""Denoisers: parameterizations of a network, and guidance."""
