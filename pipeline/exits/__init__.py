"""When to stop: the rule, the heads that learn it, and thresholds with a guarantee."""
