"""What a row holds for an image, and the one loader that makes RGB pixels of it."""
