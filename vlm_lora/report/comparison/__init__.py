"""Runs side by side: settings that differ, curves over each other, scores with paired tests, rows that changed."""
