"""Reads text and turns it into arrays. Nothing here imports torch or transformers, so a bundle's runner uses it too."""
