"""What a run shows in the terminal while it goes on, and what it says at its end."""
