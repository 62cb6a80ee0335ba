"""Trained model in, bundle out."""
