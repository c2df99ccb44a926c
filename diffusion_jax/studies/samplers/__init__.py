"""Samplers, compared at equal budgets."""
