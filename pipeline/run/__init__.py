"""A recipe on its way through the stages."""
