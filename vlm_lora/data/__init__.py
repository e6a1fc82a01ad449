"""From what the user names to conversations and pixels: source, rows, columns, conversation, image."""
