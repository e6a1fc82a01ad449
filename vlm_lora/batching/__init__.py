"""From conversations to padded batches: rendering, masks, collation."""
