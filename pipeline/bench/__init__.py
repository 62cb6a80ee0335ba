"""Measures latency, load time, memory and size of a bundle and of what it is compared with."""
