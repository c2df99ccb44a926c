"""Networks, as Flax modules."""
