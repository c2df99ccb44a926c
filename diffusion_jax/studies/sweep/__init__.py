"""The best settings of a model, found over any config keys."""
