"""Doors to those who answer: one file per way of calling them."""
