"""Published weights: readers, conversions, and networks that metrics need."""
