"""nlc: a compiler for nested learning systems."""
