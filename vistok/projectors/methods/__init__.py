"""Training-free compressors, one small file each."""
