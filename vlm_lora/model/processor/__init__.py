"""What is set in a model's processor and saved with it: how large images are shown, thoughts, numbers of boxes."""
