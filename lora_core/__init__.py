"""LoRA mathematics, file formats, key maps and patching; needs torch and safetensors only."""
