"""Shows what a run measured: tables on a terminal, plots, and pages."""
