"""The small model of ``make demo``: its pictures, its weights, and the checkpoint made of them."""
