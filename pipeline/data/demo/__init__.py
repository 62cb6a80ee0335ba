"""The demo data that ship with pocketbert: small, made by the project, hard enough for early exits to matter."""
