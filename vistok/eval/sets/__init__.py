"""Distances between sets of pictures: FID and its kin."""
