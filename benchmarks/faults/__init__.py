"""Fault modules; ``rows(bench)`` yields one table row for each fault."""
