"""Plans of runs on accelerators: ahead-of-time compilation, memory, communication and FLOPs."""
