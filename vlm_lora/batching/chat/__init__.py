"""What a chat template is given, and where its texts stand in what it writes."""
