"""Training: losses, student initialisation, and the trainers."""
