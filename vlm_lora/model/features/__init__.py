"""Features of a frozen vision tower: taken once, stored, and handed back to the model in place of pixels."""
