"""Policies that others published, each by its source's rule."""
