"""From what the user names to files, and from files to splits; the Hub; streams."""
