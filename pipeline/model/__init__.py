"""One encoder and one set of exit heads: what trains is what is exported."""
