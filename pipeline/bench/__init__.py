"""Measurements and the report on them."""
