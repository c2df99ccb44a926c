"""The local page of a trained model."""
