"""Images and other arrays restored and edited by a trained model."""
