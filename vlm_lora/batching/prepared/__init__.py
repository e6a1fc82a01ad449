"""What was made of rows once and is read again: a store of tensors on disk, and prepared images in it."""
