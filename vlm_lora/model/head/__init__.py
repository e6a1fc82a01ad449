"""The head and the loss: from hidden states to the loss of each supervised token, a few rows at a time."""
