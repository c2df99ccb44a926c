"""Foundations: types, arrays, random streams, integrators, errors, and reading and writing files."""
