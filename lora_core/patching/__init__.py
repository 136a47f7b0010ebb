"""From a plan to changed weights: fused updates, the ledger that undoes them, merged files."""
