"""pocketbert distils a BERT into a small model with an exit after every layer and packs it into a bundle for phones."""
