"""Proof that every program of a bundle computes what the model it came from computes."""
