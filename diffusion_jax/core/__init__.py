"""Foundations: types, arrays, random streams, integrators, errors, reading and writing files."""
