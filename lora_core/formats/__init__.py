"""What the names in a LoRA file mean: suffix -> role, and the metadata that writers add."""
