"""Rows to conversations: one converter per layout, image places, chats."""
