"""The command line; needs neither ComfyUI nor diffusers."""
