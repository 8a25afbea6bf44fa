"""A Hydra sweeper: `hydra/sweeper=search` searches with Optuna, prunes, and resumes."""
