"""Where nodes live: the one interface between node classes and the program that runs them."""

from .protocol import Applied, Host, Live, LoraChoice, Merged, Saved

__all__ = ["Applied", "Host", "Live", "LoraChoice", "Merged", "Saved"]
