"""What one run is: values, the files and flags they come from, and other tools' names for them."""
