"""C-Poly: customised Polytropon skills and routing for T5 in JAX."""
