"""The page of a run, and of several runs side by side, made from the files that they left."""
