"""Pictures and captions of a folder: what there is, in which order it is trained, as tensors."""
