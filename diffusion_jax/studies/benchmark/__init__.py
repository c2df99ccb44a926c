"""What training, sampling and other programs cost on this machine."""
