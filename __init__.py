"""ComfyUI's entry."""
