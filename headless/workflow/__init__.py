"""Graphs that people share: read from JSON and pictures, turned into what POST /prompt takes."""
