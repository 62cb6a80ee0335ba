"""Runs a recipe through its stages, from data to a measured bundle."""
