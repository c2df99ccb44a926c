"""The published recipes: one file per paper, with its variants (docs/papers.md)."""
