"""Helpers for every other folder: errors, documents, digests, processes, progress, quiet libraries, workspaces."""
