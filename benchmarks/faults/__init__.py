"""What is broken: a module a part, each with ``rows(bench)``, which yields a row a fault."""
