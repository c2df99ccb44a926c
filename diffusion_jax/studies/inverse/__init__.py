"""Methods for inverse problems, compared."""
