"""Compressors that are trained, in the published key layouts."""
