"""Facts about pipelines: where their models are, what wraps them, what their batches hold. Changes nothing."""
