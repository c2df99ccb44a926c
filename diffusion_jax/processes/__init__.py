"""Processes: two functions of time, alpha(t) and sigma(t), and all that follows from them."""
