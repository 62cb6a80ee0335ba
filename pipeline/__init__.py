"""pocketbert: a BERT, distilled, with an exit after every layer, as a bundle that a phone runs."""

__version__ = "0.1.0"
