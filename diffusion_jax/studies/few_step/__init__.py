"""Few-step models, trained and compared."""
