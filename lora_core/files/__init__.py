"""Reading and writing of tensor files; nothing in here knows what a LoRA is."""
