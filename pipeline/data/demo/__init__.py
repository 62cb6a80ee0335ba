"""The demo data sets: small, written by the project, and hard enough that early exits matter."""
