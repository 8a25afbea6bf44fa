"""Graft: sweeps of transfer-learning recipes for image classification."""
