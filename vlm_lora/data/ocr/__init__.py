"""Pages of OCR data: their boxes, their tasks, and the questions and answers made of them."""
