"""Figures, pictures, tables and HTML pages."""
