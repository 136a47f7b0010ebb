"""The trainer: one loop for every host, on PEFT's layers."""
