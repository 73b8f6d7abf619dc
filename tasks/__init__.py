"""SeqIO tasks and mixtures. Importing this package registers all of them and reads no data."""

from tasks import latent_skills, superglue, superni  # noqa: F401  (they register)
