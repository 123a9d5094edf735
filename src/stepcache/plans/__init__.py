"""Settings found by calibration or named by us: plans, presets, and how a plan knows its model."""
