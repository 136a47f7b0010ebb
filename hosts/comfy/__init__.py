"""The only package that imports ComfyUI."""
