"""Fewer bits: schemes, the int8 pass for both targets, and what each byte is spent on."""
