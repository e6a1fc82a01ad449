"""What people read: previews, model cards, the doctor."""
