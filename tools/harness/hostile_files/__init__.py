"""Hostile files, and the routes that must refuse them."""
