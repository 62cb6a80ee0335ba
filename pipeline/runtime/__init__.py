"""The reference runner: a bundle and a text in, an answer out; no training code behind it."""
