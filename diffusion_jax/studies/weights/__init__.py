"""Weights that come from elsewhere or go there, and published workdirs."""
