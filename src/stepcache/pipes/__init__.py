"""What is known of pipelines: where their models are, what wraps them, what their batches hold. Reads only."""
