"""C-Poly: customised Polytropon skills and routing for T5 in JAX.

    import cpoly_jax
    predictor = cpoly_jax.Predictor('outputs/cpoly_tiny')

Importing this package alone loads nothing: `Predictor` comes with its libraries when it is first named.
"""

__all__ = ('Predictor',)


def __getattr__(name: str):
  if name == 'Predictor':
    from cpoly_jax.predictor import Predictor
    return Predictor
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted([*globals(), *__all__])
