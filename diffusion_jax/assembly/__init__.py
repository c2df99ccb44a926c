"""Assembly: from a config to a process, a network, an objective, a trainer and samplers."""
