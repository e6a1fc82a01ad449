"""A small English corpus: what the tiny tokenizers learn their merges from."""

from __future__ import annotations

SENTENCES = (
    "What is shown in this picture?",
    "What is the value of the highest bar in the chart?",
    "How many circles are there in the image? There are 12 circles.",
    "The total is 47 percent, up from 39 percent in 2015.",
    "Which colour does the line for France have? It is red.",
    "Describe the scan of this document, please.",
    "The invoice is dated 3 March 2021 and amounts to 1,250.75 euros.",
    "A black cat is sitting on the wooden table beside a green cup.",
    "Two children are playing with a yellow ball in the park.",
    "Read all the words on the page and give the lines in order.",
    "The answer is yes. The answer is no. The answer is unknown.",
    "You are a helpful assistant who answers questions about images.",
    "Between 1990 and 2000 the share of renewable energy doubled.",
    "The left axis shows temperature, the right axis shows pressure.",
    "Where was the photograph taken? It was taken near the station.",
    "There is a small blue square above the large orange triangle.",
    "user: hello, can you see the sign? assistant: the sign says stop.",
    "She said that the train would arrive at 18:45 on platform 6.",
    "Detect every helmet, glove and mask, and give their boxes.",
    "The difference between the two values is 0.5 and their sum is 8.",
)
TEXT = "\n".join(SENTENCES)
