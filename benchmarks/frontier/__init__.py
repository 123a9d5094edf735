"""Fidelity against cost: DeepCache's algorithm, stepcache's settings and calibrated plans."""
