"""In the wheel this package holds `pipeline` and `quantize`, so that no user's package of those names meets them.

setup.py puts them here and rewrites their imports. In the checkout they are top-level packages, and this one is empty.
"""
