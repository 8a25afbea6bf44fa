"""A Hydra launcher whose jobs stand on their own feet. It serves any Hydra application."""
