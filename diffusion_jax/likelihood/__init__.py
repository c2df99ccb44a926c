"""Likelihoods: by the probability-flow ODE, and by variational bounds."""
