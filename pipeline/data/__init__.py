"""Text in, features out. Nothing here imports torch or transformers, so the runner of a bundle shares it."""
