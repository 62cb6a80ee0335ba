"""Reads bundles: the manifest, the conformance vectors, the exit rule, and the checks when a bundle is opened."""
