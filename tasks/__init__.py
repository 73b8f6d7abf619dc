"""SeqIO tasks and mixtures. Importing this package registers all of them and reads no data."""

from tasks import crossfit, latent_skills, superglue, superglue_rank, superni, superni_pretraining  # noqa: F401  (they register)
