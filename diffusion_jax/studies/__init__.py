"""Studies: what the commands do, as functions."""
