"""Data only: the 10,000 test images of Fashion-MNIST as gzip IDX files, and their licence."""
