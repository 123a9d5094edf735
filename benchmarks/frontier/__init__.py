"""Fidelity over cost."""
