"""WebDataset tars: members by strict headers, an index kept between runs, rows read by offset, and shards written."""
